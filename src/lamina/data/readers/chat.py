"""chat: OpenAI chat rows, `{"messages": [{"role", "content"}, …], "tools": […]}`.

Also decides, for every conversation in any format, whether it can be trained on. An assistant
message that is nothing but `<tool_call>` blocks becomes tool calls.
"""

import json
from typing import Any

from lamina.core.errors import DataError
from lamina.data.example import Example, Message, ToolCall, parse_call
from lamina.data.readers.format import RowFormat, RowValue, first_key

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ROLE_NAMES = {"developer": "system", "function": "tool"}
"""OpenAI's newer and older names of roles."""


def parse(row: RowValue) -> Example:
    """A conversation that has something to learn. Raises DataError with its faults."""
    assert isinstance(row, dict)
    if first_key(row, ["chosen"]) and first_key(row, ["rejected"]):
        raise DataError(
            "a preference pair",
            faults=["a preference pair (chosen, rejected), which no objective here learns from"],
        )
    messages = row.get("messages")
    if isinstance(messages, list):
        messages = _with_results_in_order([_plain(message) for message in messages])
    example = Example.from_json({**row, "messages": messages, "text": None})
    faults: list[str] = []
    normal = tuple(_with_calls(m, f"messages[{i}]", faults) for i, m in enumerate(example.messages))
    example = example.model_copy(update={"messages": normal})
    faults += _unsupported(row) + _untrainable(example)
    if faults:
        raise DataError("this row cannot be used", faults=faults)
    return example


def _plain(message: Any) -> Any:
    """The message with today's name of its role."""
    if not isinstance(message, dict):
        return message
    role = message.get("role")
    return {**message, "role": _ROLE_NAMES.get(role, role) if isinstance(role, str) else role}


def _with_results_in_order(messages: list[Any]) -> list[Any]:
    """Tool results named by the call they answer, and in the order of the calls."""
    names: dict[str, tuple[int, Any]] = {}
    found: list[Any] = []
    results: list[tuple[int, Any]] = []
    for message in messages:
        call_id = message.get("tool_call_id") if isinstance(message, dict) else None
        if isinstance(call_id, str) and message.get("role") == "tool" and call_id in names:
            order, name = names[call_id]
            results.append((order, message if message.get("name") else {**message, "name": name}))
            continue
        found += _sorted(results)
        results = []
        found.append(message)
        names |= _call_ids(message, len(names))
    return found + _sorted(results)


def _sorted(results: list[tuple[int, Any]]) -> list[Any]:
    return [message for _, message in sorted(results, key=lambda result: result[0])]


def _call_ids(message: Any, start: int) -> dict[str, tuple[int, Any]]:
    """(order, function name) of each call that has an id."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    found: dict[str, tuple[int, Any]] = {}
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(call.get("id"), str):
            found[call["id"]] = start + len(found), function.get("name")
    return found


def _with_calls(message: Message, where: str, faults: list[str]) -> Message:
    """The message with `<tool_call>` blocks as tool calls, if it is an answer of nothing else."""
    text = message.content.strip()
    if message.role != "assistant" or not text.startswith(_OPEN):
        return message
    if text.endswith(_CLOSE):
        calls = _blocks(text, where, faults)
    elif _CLOSE not in text:
        faults.append(f"{where}: tool call isn't JSON: {_CLOSE} is missing")
        return message
    else:
        return message  # an answer that goes on in words
    return Message(role=message.role, content="", tool_calls=(*calls, *message.tool_calls))


def _blocks(text: str, where: str, faults: list[str]) -> tuple[ToolCall, ...]:
    """The calls of a text made of `<tool_call>` blocks. A mark inside JSON text is no mark."""
    calls: list[ToolCall] = []
    position = 0
    while position < len(text):
        if not text.startswith(_OPEN, position):
            faults.append(f"{where}: tool call isn't JSON: text between two calls")
            break
        begin = position + len(_OPEN)
        begin += len(text[begin:]) - len(text[begin:].lstrip())
        try:
            value, end = json.JSONDecoder().raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            faults.append(f"{where}: tool call isn't JSON: {error}")
            break
        rest = text[end:].lstrip()
        if not rest.startswith(_CLOSE):
            faults.append(f"{where}: tool call isn't JSON: {_CLOSE} is missing")
            break
        calls.append(parse_call(value, f"{where}: tool call {len(calls) + 1}", faults))
        position = len(text) - len(rest.removeprefix(_CLOSE).lstrip())
    return tuple(calls)


def _unsupported(row: dict[str, Any]) -> list[str]:
    return [
        f"messages[{i}]: weight {message['weight']!r}; every answer is trained on, with weight 1"
        for i, message in enumerate(row["messages"])
        if message.get("weight") not in (None, 1)
    ]


def _untrainable(example: Example) -> list[str]:
    faults = []
    if example.answer is None:
        faults.append("no assistant turn, so there is nothing to learn")
    for i, message in enumerate(example.messages):
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            faults.append(f"messages[{i}]: an assistant turn without content")
        if "\0" in message.content:
            faults.append(f"messages[{i}]: a NUL character in its content")
    return faults


CHAT = RowFormat(
    name="chat",
    expects="messages (a list of role and content)",
    matches=lambda row: first_key(row, ["messages"]) is not None,
    parse=parse,
)
