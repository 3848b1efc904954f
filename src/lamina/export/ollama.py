"""A Modelfile beside a GGUF model: Go template, stop strings and parameters, for `ollama create`.

Only ChatML-shaped templates are put into Go: every turn is open + role + middle + content + close.
The shape is found by rendering, and checked by composing conversations from the pieces.
"""

from dataclasses import dataclass
from typing import Any

from lamina.core.errors import UsageError
from lamina.tokens.template import ChatFormat

FILE = "Modelfile"
MAX_CONTEXT = 8192
"""Ollama reserves memory for the whole context, so a base's longest is not asked for unasked."""
_ROLES = ("system", "user", "assistant", "user")
_WORDS = ("probesystem", "probeuser", "probeanswer", "probenext")


@dataclass(frozen=True)
class Shape:
    """The pieces of a ChatML-shaped template."""

    start: str
    """Before everything; the begin-of-text token, which Ollama adds by itself."""
    open: str
    middle: str
    close: str
    default_system: str | None
    """What the template says where a conversation has no system message."""

    def render(self, messages: list[dict[str, Any]]) -> str:
        """A conversation up to the next answer, as Ollama's engine composes it."""
        turns = list(messages)
        if self.default_system is not None and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, {"role": "system", "content": self.default_system})
        body = "".join(self._turn(turn["role"], turn["content"]) for turn in turns)
        return f"{self.start}{body}{self.open}assistant{self.middle}"

    def go(self) -> str:
        """The same as a Go template over Ollama's `.Messages`."""
        turn = f"{self.open}{{{{ .Role }}}}{self.middle}{{{{ .Content }}}}{self.close}"
        prompt = f"{self.open}assistant{self.middle}"
        return f"{{{{ range .Messages }}}}{turn}{{{{ end }}}}{prompt}"

    def _turn(self, role: str, content: str) -> str:
        return f"{self.open}{role}{self.middle}{content}{self.close}"


def shape_of(fmt: ChatFormat) -> Shape:
    """The pieces of a base's template. Raises UsageError when it is not of this shape."""
    messages = [{"role": r, "content": w} for r, w in zip(_ROLES, _WORDS, strict=True)]
    rest, gaps = fmt.text(messages, ()), []
    for word in _WORDS:
        gap, _, rest = rest.partition(word)
        gaps.append(gap)
    bos = fmt.tokenizer.bos_token or ""
    start = bos if fmt.bos_id is not None and gaps[0].startswith(bos) else ""
    opened, _, middle = gaps[0].removeprefix(start).partition("system")
    tail = f"{opened}assistant{middle}"
    shape = Shape(start, opened, middle, rest.removesuffix(tail), None)
    alone = messages[1:2]
    if fmt.text(alone, ()) != shape.render(alone):
        turn = f"{opened}user{middle}{_WORDS[1]}{shape.close}{tail}"
        lead = f"{start}{opened}system{middle}"
        system = fmt.text(alone, ()).removeprefix(lead).removesuffix(f"{shape.close}{turn}")
        shape = Shape(start, opened, middle, shape.close, system)
    wrong = any(fmt.text(some, ()) != shape.render(some) for some in (alone, messages))
    if wrong or any("{{" in part or '"""' in part for part in (opened, middle, shape.close)):
        raise UsageError(
            "this base's chat template is not of ChatML's shape, and is not put into Go",
            hint="--to gguf carries the template as it is: llama-server and LM Studio run it",
        )
    return shape


def modelfile(shape: Shape, model: str, context: int, stops: tuple[str, ...]) -> str:
    """The Modelfile's text. `stops`: strings that end an answer.

    Greedy, as exams and `lamina chat` answer; Ollama's own defaults sample at 0.8 and punish
    repetition.
    """
    lines = [f"FROM ./{model}", f'TEMPLATE """{shape.go()}"""']
    if shape.default_system:
        lines.append(f'SYSTEM """{shape.default_system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += [
        f"PARAMETER num_ctx {min(context, MAX_CONTEXT)}",
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
    ]
    return "\n".join(lines) + "\n"
