"""An example: one conversation, piece of plain text or captioned image that a model can learn from.

`Example.to_json` writes the OpenAI chat form and `Example.from_json` reads it back unchanged. Both
are about form only; whether a row is worth training on is decided by `readers.chat`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from lamina.core.digest import compact_json, digest_json
from lamina.core.errors import DataError
from lamina.core.values import Value
from lamina.data.images import carried_fault

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
MAX_DEPTH = 64
"""Deepest nesting of a tool's schema, of arguments and of accepted calls."""

_HALF_PAIR = re.compile("[\ud800-\udfff]")


class ToolCall(Value):
    """An assistant's call of one function."""

    name: str
    arguments: str
    """Compact JSON of an object, keys in the order in which they were written."""


class Message(Value):
    """One turn of a conversation."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of an assistant turn, made after its content."""
    name: str | None = None
    """Of a tool's result: the function that gave it."""

    def to_json(self) -> dict[str, Any]:
        """OpenAI chat form."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            found["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return found if self.name is None else found | {"name": self.name}


class Example(Value):
    """A row of training data. It has `messages`, or `text`, or `text` with the `image` it is of."""

    messages: tuple[Message, ...] = ()
    tools: tuple[str, ...] = ()
    """Compact JSON of each tool, in its own order: `{"type":"function","function":{…}}`."""
    accept: tuple[str, ...] = ()
    """Right answers, for exams that compare text or numbers."""
    choices: tuple[str, ...] = ()
    """The answers to choose from, for a choice exam."""
    answer_index: int | None = None
    """Which of the choices is right, counted from 0."""
    accept_calls: str | None = None
    """Right tool calls, compact JSON: `[{"function": {"argument": [accepted values]}}]`; `""`
    among the accepted values means that the argument may be left out; `[]`: no call is right."""
    text: str | None = None
    """Plain text to continue; the caption where there is an `image`."""
    image: str | None = None
    """An image file in base64 (see `images`)."""

    @property
    def answer(self) -> Message | None:
        """The last assistant turn."""
        return next((m for m in reversed(self.messages) if m.role == "assistant"), None)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What stands before the last assistant turn; everything where there is none."""
        return self.messages[: self._turn(last=True)]

    @property
    def opening(self) -> tuple[Message, ...]:
        """What stands before the first assistant turn; everything where there is none."""
        return self.messages[: self._turn(last=False)]

    @property
    def matter(self) -> str | None:
        """What a row without messages is about: its image, where it has one, else its text."""
        return self.text if self.image is None else self.image

    def content_digest(self) -> str:
        """sha256 of what decides training: messages, tools, text and image."""
        messages = [message.to_json() for message in self.messages]
        found = {"messages": messages, "tools": list(self.tools), "text": self.text}
        return digest_json(found if self.image is None else found | {"image": self.image})

    def to_json(self) -> dict[str, Any]:
        """A row in OpenAI chat form, or `{"text": …}`; fields that say nothing are left out."""
        found: dict[str, Any] = {} if self.text is None else {"text": self.text}
        if self.image is not None:
            found["image"] = self.image
        if self.messages or self.text is None:
            found["messages"] = [message.to_json() for message in self.messages]
        if self.tools:
            found["tools"] = [json.loads(tool) for tool in self.tools]
        found |= {
            key: list(getattr(self, key)) for key in ("accept", "choices") if getattr(self, key)
        }
        if self.answer_index is not None:
            found["answer_index"] = self.answer_index
        if self.accept_calls is not None:
            found["accept_calls"] = json.loads(self.accept_calls)
        return found

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Read a row; keys that are not a field's are ignored. Raises DataError with all faults."""
        faults: list[str] = []
        text = row.get("text")
        given = row.get("messages")
        choices = _texts(row.get("choices"), "choices", faults)
        found = {
            "messages": () if given is None and text is not None else parse_messages(given, faults),
            "tools": parse_tools(row.get("tools"), faults),
            "accept": _texts(row.get("accept"), "accept", faults),
            "choices": choices,
            "answer_index": _index(row.get("answer_index"), len(choices), faults),
            "accept_calls": _accepted_calls(row.get("accept_calls"), faults),
            "text": None if text is None else _text(text, "text", faults),
            "image": _image(row.get("image"), text, faults),
        }
        if faults:
            raise DataError("this row cannot be used", faults=faults)
        return cls(**found)

    def _turn(self, *, last: bool) -> int:
        turns = [i for i, message in enumerate(self.messages) if message.role == "assistant"]
        return (turns[-1] if last else turns[0]) if turns else len(self.messages)


# -- reading the parts of a row; each adds what is wrong to `faults` ----------------------------


def parse_messages(value: Any, faults: list[str]) -> tuple[Message, ...]:
    """Messages in OpenAI chat form."""
    if not isinstance(value, list):
        faults.append(f"messages: {kind(value)}, not a list")
        return ()
    found = [_message(item, f"messages[{i}]", faults) for i, item in enumerate(value)]
    return tuple(message for message in found if message is not None)


def parse_tools(value: Any, faults: list[str]) -> tuple[str, ...]:
    """Tools as compact JSON, from a list (or its JSON text) of tools or of bare functions."""
    value = loaded(value)
    if value is None:
        return ()
    if not isinstance(value, list):
        faults.append(f"tools: {kind(value)}, not a list of functions")
        return ()
    return tuple(_tool(item, f"tools[{i}]", faults) for i, item in enumerate(value))


def parse_call(value: Any, where: str, faults: list[str]) -> ToolCall:
    """A call from `{"name", "arguments"}`; the arguments are an object or its JSON text."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        faults.append(f"{where}: no function name")
        return ToolCall(name="", arguments="{}")
    arguments = value.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else None
        except (ValueError, RecursionError):
            faults.append(f"{where}: the arguments of {value['name']!r} are not JSON")
            arguments = None
    if arguments is None:  # how a call without arguments is often written
        arguments = {}
    if not isinstance(arguments, dict):
        faults.append(
            f"{where}: the arguments of {value['name']!r} are {kind(arguments)}, not an object"
        )
        arguments = {}
    name = _text(value["name"], f"{where}: name", faults)
    return ToolCall(name=name, arguments=_compact(arguments, f"{where}: arguments", faults))


def loaded(value: Any) -> Any:
    """`value`, or what it says where it is JSON text; text that is not JSON stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def kind(value: Any) -> str:
    """A JSON value's type in words."""
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return "missing" if value is None else names.get(type(value), "a number")


def _message(value: Any, where: str, faults: list[str]) -> Message | None:
    if not isinstance(value, dict):
        faults.append(f"{where}: {kind(value)}, not an object")
        return None
    before = len(faults)
    role = value.get("role")
    if role not in ROLES:
        faults.append(f"{where}: unknown role {role!r}; known: {', '.join(ROLES)}")
    calls = _calls(value.get("tool_calls"), where, faults)
    if calls and role != "assistant":
        faults.append(f"{where}: tool_calls in a {role} message; only the assistant calls")
    content = _content(value.get("content"), bool(calls), where, faults)
    name = value.get("name")
    name = None if name is None else _text(name, f"{where}: name", faults)
    if len(faults) > before:
        return None
    return Message(role=role, content=content, tool_calls=calls, name=name)


def _calls(value: Any, where: str, faults: list[str]) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        faults.append(f"{where}: tool_calls: {kind(value)}, not a list")
        return ()
    functions = [item.get("function", item) if isinstance(item, dict) else item for item in value]
    return tuple(
        parse_call(function, f"{where}.tool_calls[{i}]", faults)
        for i, function in enumerate(functions)
    )


def _content(value: Any, has_calls: bool, where: str, faults: list[str]) -> str:
    """Text, or the joined text of OpenAI's content parts; None only beside tool calls."""
    if value is None and has_calls:
        return ""
    if not isinstance(value, list):
        return _text(value, f"{where}: content", faults)
    found = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            name = part.get("type") if isinstance(part, dict) else kind(part)
            faults.append(f"{where}: content holds {name!r}; only text can be read")
        else:
            found.append(_text(part.get("text"), f"{where}: content", faults))
    return "".join(found)


def _tool(value: Any, where: str, faults: list[str]) -> str:
    function = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(function, dict):
        faults.append(f"{where}: {kind(function)}, not a function's schema")
        return "{}"
    if function is not value and value.get("type", "function") != "function":
        faults.append(f"{where}: a tool of type {value['type']!r}; only functions can be used")
    # tables fill absent keys with null
    function = {key: item for key, item in function.items() if item is not None}
    if function is not value and function.get("type") == "function":
        del function["type"]  # the flat form: {"type": "function", "name": …}
    if not isinstance(function.get("name"), str) or not function["name"]:
        faults.append(f"{where}: the function has no name")
    if not isinstance(function.get("parameters", {}), dict):
        faults.append(f"{where}: parameters: {kind(function['parameters'])}, not a JSON schema")
    return _compact({"type": "function", "function": function}, where, faults)


def _accepted_calls(value: Any, faults: list[str]) -> str | None:
    value = loaded(value)
    if value is None:
        return None
    if not isinstance(value, list) or not all(map(_is_accepted_call, value)):
        faults.append('accept_calls: not written as [{"function": {"argument": [values]}}]')
        return None
    return _compact(value, "accept_calls", faults)


def _is_accepted_call(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) == 1
        and all(
            isinstance(arguments, dict) and all(isinstance(v, list) for v in arguments.values())
            for arguments in value.values()
        )
    )


def _texts(value: Any, where: str, faults: list[str]) -> tuple[str, ...]:
    """A list of texts; one text or number stands for a list of one."""
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(_text_or_number(item, where, faults) for item in items)


def _text_or_number(value: Any, where: str, faults: list[str]) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    return _text(value, where, faults)


def _image(value: Any, caption: Any, faults: list[str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        faults.append(f"image: {kind(value)}, not a file in base64")
        return None
    fault = carried_fault(value)
    if fault is not None:
        faults.append(f"image: {fault}")
    if not isinstance(caption, str) or not caption.strip():
        faults.append("image: no caption (text) beside it")
    return value


def _index(value: Any, choices: int, faults: list[str]) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < choices:
        faults.append(f"answer_index: {value!r} with {choices} choices; it counts from 0")
        return None
    return value


def _text(value: Any, where: str, faults: list[str]) -> str:
    if not isinstance(value, str):
        faults.append(f"{where}: {kind(value)}" + ("" if value is None else ", not text"))
        return ""
    half = _HALF_PAIR.search(value)
    if half:
        faults.append(
            f"{where}: character {half.start() + 1} is half of a surrogate pair "
            f"(\\u{ord(half[0]):04x}), which is no text"
        )
        return ""
    return value


def _compact(value: Any, where: str, faults: list[str]) -> str:
    """Compact JSON, keys in their own order; `{}` with a fault for what cannot be written."""
    if _deeper(value, MAX_DEPTH):
        faults.append(f"{where}: nested deeper than {MAX_DEPTH}")
        return "{}"
    try:
        text = compact_json(value)
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        faults.append(f"{where}: holds half of a surrogate pair, which is no text")
    except (ValueError, TypeError) as error:  # NaN; a date out of a table
        faults.append(f"{where}: cannot be written as JSON: {error}")
    return "{}"


def _deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(item, depth - 1) for item in inner)
