"""From a request's body to requests that an engine takes. No HTTP, no waiting for answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from lamina.flows.hosting import Host, ServedBase
from lamina.serve.constrain import GrammarState
from lamina.serve.request import Request
from lamina.stack.resolve import ResolvedStack
from lamina.tokens.chunks import Chunk
from lamina.web.chat_schema import ChatRequest, NamedChoice
from lamina.web.conversation import read_conversation
from lamina.web.errors import Refusal
from lamina.web.text_schema import LONGEST, TextRequest


@dataclass(frozen=True, eq=False)
class Job:
    """What to hand to the engine for one HTTP request."""

    stack: ResolvedStack
    served: ServedBase
    requests: tuple[Request, ...]
    stops: tuple[str, ...]


def chat_job(host: Host, asked: ChatRequest, allowed: Sequence[str] | None) -> Job:
    """One request for each choice. Raises LaminaError, Refusal."""
    stack = host.resolve(asked.model, allowed)
    messages, tools = read_conversation(asked.messages, asked.shown_tools)
    served = host.base_of(stack)
    _refuse_huge(served, sum(len(message.content) for message in messages), "messages")
    prompt = served.format.prompt_ids(messages, tools)
    longest = _room(served, len(prompt), asked.longest, "messages")
    requests = [
        Request(
            stack=stack,
            prompt=tuple(prompt),
            max_new_tokens=longest,
            stop_ids=served.format.stop_ids,
            sampling=sampling,
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            constraint=_constraint(served, asked, tools),
        )
        for sampling in asked.samplings()
    ]
    return Job(stack, served, tuple(requests), asked.stops)


def text_job(host: Host, asked: TextRequest, allowed: Sequence[str] | None) -> Job:
    """One request for each choice of each prompt. Raises LaminaError, Refusal."""
    stack = host.resolve(asked.model, allowed)
    served = host.base_of(stack)
    requests = []
    samplings = asked.samplings()
    for given in asked.prompts:
        prompt = _text_ids(served, given) if isinstance(given, str) else given
        if not prompt:
            raise Refusal(400, "an empty prompt cannot be continued", None, "prompt")
        if max(prompt) >= served.engine.vocabulary:
            raise Refusal(
                400, f"the base has tokens 0 to {served.engine.vocabulary - 1}", None, "prompt"
            )
        longest = _room(served, len(prompt), asked.max_tokens or LONGEST, "prompt")
        requests += [
            Request(
                stack=stack,
                prompt=tuple(prompt),
                max_new_tokens=longest,
                stop_ids=served.format.stop_ids,
                sampling=sampling,
                logprobs=asked.logprobs,
            )
            for sampling in samplings
        ]
    return Job(stack, served, tuple(requests), asked.stops)


def _room(served: ServedBase, prompt: int, longest: int | None, param: str) -> int:
    """Most tokens of an answer; what is asked for beyond the context is cut off."""
    context = served.engine.context
    if prompt >= context:
        raise Refusal(
            400,
            f"the {param} have {prompt} tokens, and base {served.name} reads {context}, "
            "the answer included",
            "context_length_exceeded",
            param,
        )
    return min(longest or context, context - prompt)


def _refuse_huge(served: ServedBase, characters: int, param: str) -> None:
    """Refuse what is surely too long before it is tokenised, which takes seconds for megabytes."""
    context = served.engine.context
    if characters > context * served.longest_token:
        raise Refusal(
            400,
            f"the {param} have {characters} characters, and base {served.name} reads {context} "
            "tokens, the answer included",
            "context_length_exceeded",
            param,
        )


def _text_ids(served: ServedBase, text: str) -> list[int]:
    """As plain text is trained on: the tokenizer's bos, then the text, control tokens spelled."""
    _refuse_huge(served, len(text), "prompt")
    chunk = Chunk(text, literal=True)
    lead = [] if served.format.bos_id is None else [served.format.bos_id]
    return lead + served.format.encode_chunks([chunk])[chunk]


def _constraint(
    served: ServedBase, asked: ChatRequest, tools: tuple[str, ...]
) -> GrammarState | None:
    """What the answer must look like. Raises UsageError for a schema that cannot be used."""
    schema = asked.answer_schema
    several = asked.parallel_tool_calls is not False
    wanted = asked.tool_choice
    if tools and wanted == "required":
        return served.grammars.calls(served.form, tools, several=several)
    if isinstance(wanted, NamedChoice):
        names = [tool.function.name for tool in asked.shown_tools]
        only = tools[names.index(wanted.function.name)]
        return served.grammars.calls(served.form, [only], several=False)
    if tools and schema is not None:
        return served.grammars.calls(served.form, tools, several=several, otherwise=schema)
    if any(tool.function.strict for tool in asked.shown_tools):
        return served.grammars.text_or_calls(served.form, tools, several=several)
    return None if schema is None else served.grammars.schema(schema)
