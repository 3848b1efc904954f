"""How a base's own template writes a tool call: what a grammar must let through.

Found by rendering one call and cutting it at its name and its arguments, so the calls that are
forced are in the form that training saw and that `tools.parse_tool_calls` reads.
"""

import json
from dataclasses import dataclass

from lamina.core.errors import DataError
from lamina.data.example import Message, ToolCall
from lamina.tokens.template import ChatFormat
from lamina.tokens.tools import CALL_CLOSE, CALL_OPEN, parse_tool_calls

_NAME, _ARGUMENTS = "probetool", '{"probeargument": "probevalue"}'
_CALL = ToolCall(name=_NAME, arguments=_ARGUMENTS)
_TOOL = json.dumps(
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "probe",
            "parameters": {"type": "object", "properties": {"probeargument": {"type": "string"}}},
        },
    }
)


@dataclass(frozen=True)
class CallForm:
    """A call is `before` name `between` arguments `after`, the name without its quotes."""

    before: str
    between: str
    after: str

    @property
    def repeats(self) -> bool:
        """Whether an answer may hold several calls, one under the other."""
        return CALL_CLOSE in self.after


HERMES = CallForm(f'{CALL_OPEN}\n{{"name": "', '", "arguments": ', f"}}\n{CALL_CLOSE}")


def call_form(fmt: ChatFormat) -> CallForm:
    """The form of `fmt`'s template; Hermes' where the template writes calls that we do not read."""
    turns = (
        Message(role="user", content="probeuser"),
        Message(role="assistant", content="", tool_calls=(_CALL,)),
    )
    try:
        spans = fmt.rendering(turns, (_TOOL,)).sequences[-1]
    except DataError:
        return HERMES
    answer = "".join(chunk.text for chunk in spans[-1].chunks).rstrip()
    for end in (fmt.decode([stop], special=True) for stop in fmt.stop_ids):
        answer = answer.removesuffix(end)
    for end in fmt.stop_strings:
        answer = answer.removesuffix(end)
    before, found_name, rest = answer.strip().partition(_NAME)
    between, found_arguments, after = rest.partition(_ARGUMENTS)
    form = CallForm(before, between, after)
    calls, faults = parse_tool_calls(before + "add" + between + '{"a": 1}' + after)
    wanted = (ToolCall(name="add", arguments='{"a":1}'),)
    readable = found_name and found_arguments and calls == wanted and not faults
    return form if readable else HERMES
