"""Messages and tools as OpenAI's clients write them -> as training, exams and chat know them."""

from collections.abc import Sequence
from typing import Any

from lamina.core.errors import DataError
from lamina.data.example import Message, parse_messages, parse_tools
from lamina.web.chat_schema import AskedMessage, Tool


def read_conversation(
    messages: Sequence[AskedMessage], tools: Sequence[Tool]
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Messages, and tools as compact JSON. Raises DataError with all faults."""
    faults: list[str] = []
    names: dict[str, str] = {}
    rows = [_row(message, names) for message in messages]
    found = parse_messages(rows, faults)
    listed = [
        {"type": "function", "function": tool.function.model_dump(exclude={"strict"})}
        for tool in tools
    ]
    read = parse_tools(listed, faults)
    if faults:
        raise DataError("these messages cannot be used", faults=faults)
    return found, read


def _row(message: AskedMessage, names: dict[str, str]) -> dict[str, Any]:
    """As a row of training data writes it; `names`: the function behind each call's id."""
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    row: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content,
        "name": message.name,
    }
    calls = message.tool_calls or ()
    names.update({call.id: call.function.name for call in calls if call.id is not None})
    if calls:
        row["tool_calls"] = [call.model_dump(include={"type", "function"}) for call in calls]
    if message.role == "tool" and message.name is None and message.tool_call_id is not None:
        row["name"] = names.get(message.tool_call_id)
    return row
