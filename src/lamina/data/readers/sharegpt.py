"""sharegpt: `{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}`."""

from typing import Any

from lamina.core.errors import DataError
from lamina.data.example import Example, kind, loaded
from lamina.data.readers import chat
from lamina.data.readers.format import RowFormat, RowValue, first_key, leading_system, picked

_KEYS = ("conversations", "conversation")
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_CALL = "function_call"


def parse(row: RowValue) -> Example:
    """A conversation; `system` and `tools` stand beside it. Raises DataError."""
    assert isinstance(row, dict)
    key = first_key(row, _KEYS) or _KEYS[0]
    turns = row[key]
    if not isinstance(turns, list):
        raise DataError("this row cannot be used", faults=[f"{key}: {kind(turns)}, not a list"])
    messages = [*leading_system(row), *map(_message, turns)]
    return chat.parse({**picked(row), "messages": messages})


def _message(value: Any) -> Any:
    """A turn in chat form; what cannot be understood is left for the chat format to name."""
    if not isinstance(value, dict):
        return value
    role = value.get("from", value.get("role"))
    content = value.get("value", value.get("content"))
    if role == _CALL:
        calls = loaded(content)
        calls = calls if isinstance(calls, list) else [calls]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    return {"role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": content}


SHAREGPT = RowFormat(
    name="sharegpt",
    expects="conversations (a list of from and value)",
    matches=lambda row: first_key(row, _KEYS) is not None,
    parse=parse,
)
