"""Run a chat template: render messages to text, and find out what the template can do.

Templates are programs by strangers: they run in `tokens.sandbox`, and whatever one raises becomes a
DataError with the template's message. Rendering is a pure function, the date included.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.errors import DataError
from lamina.core.plain import shown_in_line
from lamina.data.example import Message, ToolCall
from lamina.tokens.sandbox import render
from lamina.tokens.tools import function_schema, render_answer, render_tool_result, tools_preamble

_USER, _SYSTEM, _RESULT = "probeuser", "probesystem", "proberesult"
_TOOL, _PARAMETER, _ARGUMENT = "probetool", "probeparameter", "probeargument"
_PROBE_CALL = ToolCall(name=_TOOL, arguments=json.dumps({_PARAMETER: _ARGUMENT}))
_PROBE_TOOLS = (
    json.dumps(
        {
            "name": _TOOL,
            "description": "probe",
            "parameters": {
                "type": "object",
                "properties": {_PARAMETER: {"type": "string", "description": "probe"}},
                "required": [_PARAMETER],
            },
        }
    ),
)

Rendered = list[dict[str, Any]]
"""Messages as a template sees them."""


@dataclass(frozen=True)
class Abilities:
    """What a chat template renders by itself."""

    system: bool
    """A system message at the start."""
    tools: bool
    """Tool schemas and an assistant's calls."""
    tool_role: bool
    """A tool's result, as role `tool`."""


class Renderer:
    """A tokenizer's chat template, or `template` in its place."""

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self._specials = {key: str(text) for key, text in tokenizer.special_tokens_map.items()}
        self._templates = {
            False: _named_template(tokenizer, template, "default"),
            True: _named_template(tokenizer, template, "tool_use"),
        }

    def __call__(self, messages: Rendered, tools: Sequence[dict[str, Any]], *, prompt: bool) -> str:
        """The text of a conversation; with `prompt`, up to where the next answer starts.

        Raises: DataError with the template's own message.
        """
        try:
            return render(
                self._templates[bool(tools)],
                {
                    **self._specials,
                    "messages": messages,
                    "tools": [{"type": "function", "function": tool} for tool in tools] or None,
                    "documents": None,
                    "add_generation_prompt": prompt,
                },
            )
        except Exception as error:  # a template is a stranger's program: it may raise anything
            raise DataError(f"the chat template refuses: {shown_in_line(str(error))}") from error

    def probe(self) -> Abilities:
        """Find the template's abilities by rendering small conversations."""
        user = Message(role="user", content=_USER)
        call = Message(role="assistant", content="", tool_calls=(_PROBE_CALL,))
        result = Message(role="tool", content=_RESULT, name=_TOOL)
        everything = Abilities(system=True, tools=True, tool_role=True)
        tools = self._shows(
            (user, call), _PROBE_TOOLS, everything, (_USER, _TOOL, _PARAMETER, _ARGUMENT)
        ) and self._shows((user,), _PROBE_TOOLS, everything, (_USER, _TOOL, _PARAMETER))
        system = self._shows(
            (Message(role="system", content=_SYSTEM), user), (), everything, (_SYSTEM, _USER)
        )
        able = Abilities(system=system, tools=tools, tool_role=True)
        tool_role = self._shows(
            (user, call, result), _PROBE_TOOLS, able, (_USER, _ARGUMENT, _RESULT)
        )
        return Abilities(system=system, tools=tools, tool_role=tool_role)

    def _shows(
        self,
        messages: tuple[Message, ...],
        tools: tuple[str, ...],
        abilities: Abilities,
        wanted: tuple[str, ...],
    ) -> bool:
        try:
            text = self(*adapt(messages, tools, abilities), prompt=False)
        except DataError:
            return False
        return all(word in text for word in wanted)


def adapt(
    messages: Sequence[Message], tools: tuple[str, ...], abilities: Abilities
) -> tuple[Rendered, list[dict[str, Any]]]:
    """Messages and tools in the form that a template with these abilities understands.

    Prefix-stable: what the messages up to an assistant turn become never depends on later ones.
    """
    native = [function_schema(tool) for tool in tools] if abilities.tools else []
    found: Rendered = []
    if tools and not abilities.tools:
        messages = _with_preamble(messages, tools)
    call_ids: list[str] = []
    for index, message in enumerate(messages):
        if message.role == "assistant":
            call_ids = [f"call{index:03d}{n:02d}" for n in range(len(message.tool_calls))]
            found.append(_assistant(message, call_ids, abilities))
        elif message.role == "tool":
            call_id = call_ids.pop(0) if call_ids else None
            found.append(_tool_result(message, call_id, abilities))
        elif message.role == "system" and not abilities.system:
            found.append(_as_user(message.content))
        else:
            found.append({"role": message.role, "content": message.content})
    return _merge_users(found), native


def _with_preamble(messages: Sequence[Message], tools: tuple[str, ...]) -> list[Message]:
    """The messages with the tools described in the leading system message."""
    rest = list(messages)
    own = rest.pop(0).content if rest and rest[0].role == "system" else ""
    text = "\n\n".join(part for part in (own, tools_preamble(tools)) if part)
    return [Message(role="system", content=text), *rest]


def _assistant(message: Message, call_ids: list[str], abilities: Abilities) -> dict[str, Any]:
    if not (message.tool_calls and abilities.tools):
        content = render_answer(message.content, message.tool_calls)
        return {"role": "assistant", "content": content}
    calls = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.loads(call.arguments)},
        }
        for call_id, call in zip(call_ids, message.tool_calls, strict=True)
    ]
    return {"role": "assistant", "content": message.content, "tool_calls": calls}


def _tool_result(message: Message, call_id: str | None, abilities: Abilities) -> dict[str, Any]:
    if not abilities.tool_role:
        return _as_user(render_tool_result(message.content))
    found = {"role": "tool", "content": message.content}
    if message.name is not None:
        found["name"] = message.name
    if call_id is not None:
        found["tool_call_id"] = call_id
    return found


def _as_user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content, "adapted": True}


def _merge_users(messages: Rendered) -> Rendered:
    """Join what was made a user message with the user message beside it: templates alternate."""
    found: Rendered = []
    for message in messages:
        adapted = message.pop("adapted", False)
        before = found[-1] if found else None
        users = before is not None and before["role"] == message["role"] == "user"
        if before is not None and users and (adapted or before["adapted"]):
            found[-1] = {
                "role": "user",
                "content": before["content"] + "\n\n" + message["content"],
                "adapted": True,
            }
        else:
            found.append(message | {"adapted": adapted})
    for message in found:
        del message["adapted"]
    return found


def _named_template(tokenizer: Any, template: str | None, name: str) -> str:
    """The template text to render with. Raises DataError when the tokenizer has none."""
    found = template if template is not None else tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get(name) or found.get("default")
    if not found:
        raise DataError(
            "this base has no chat template, so conversations cannot be rendered",
            hint="`lamina base pull` gives ChatML to a base without a template: pull it again, "
            "or give a template",
        )
    return str(found)
