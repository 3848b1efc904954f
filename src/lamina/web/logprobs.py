"""Log-probabilities of tokens, in the two forms of the API."""

from collections.abc import Sequence

from lamina.flows.hosting import ServedBase
from lamina.serve.request import Token
from lamina.web.chat_schema import Logprobs, TokenLogprob, TopToken
from lamina.web.text_schema import TextLogprobs


def of_chat(served: ServedBase, tokens: Sequence[Token]) -> Logprobs:
    """Each token with the likeliest ones in its place."""
    return Logprobs(
        content=[
            TokenLogprob(
                **_spelled(served, token.id, token.logprob),
                top_logprobs=[TopToken(**_spelled(served, *top)) for top in token.top],
            )
            for token in tokens
        ]
    )


def of_text(served: ServedBase, tokens: Sequence[Token], offset: int) -> TextLogprobs:
    """The same as parallel lists; the first token stands after `offset` characters."""
    texts = [_text(served.grammars.spelled(token.id)) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return TextLogprobs(
        tokens=texts,
        token_logprobs=[token.logprob or 0.0 for token in tokens],
        top_logprobs=[
            {_text(served.grammars.spelled(index)): value for index, value in token.top}
            for token in tokens
        ],
        text_offset=offsets,
    )


def _spelled(served: ServedBase, token: int, logprob: float | None) -> dict[str, object]:
    spelled = served.grammars.spelled(token)
    return {"token": _text(spelled), "logprob": logprob or 0.0, "bytes": list(spelled)}


def _text(spelled: bytes) -> str:
    return spelled.decode("utf-8", "replace")
