"""Tool calls as text, Hermes style, for templates that know no tools; and reading answers back.

system     …<tools>\\n{schema}\\n{schema}\\n</tools>…
assistant  <tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>
tool       <tool_response>\\n…\\n</tool_response>      (where the template has no role for it)
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lamina.core.digest import compact_json
from lamina.data.example import ToolCall

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
_PREAMBLE = (
    "You may call these functions:\n<tools>\n{schemas}\n</tools>\n"
    "To call one, answer only with\n"
    '<tool_call>\n{{"name": "...", "arguments": {{...}}}}\n</tool_call>'
)
_SCHEMA_KEYS = ("name", "description", "parameters")
_REASONING = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
NATIVE_MARKS = ("[TOOL_CALLS]", "<|python_tag|>")
_ARGUMENT_KEYS = ("arguments", "parameters")
_MAX_SHOWN = 60


@lru_cache(maxsize=512)
def function_schema(tool: str) -> dict[str, Any]:
    """The inner function schema of one tool's JSON, name first. Treat it as read-only."""
    loaded = json.loads(tool)
    schema = loaded.get("function", loaded)
    ordered = {key: schema[key] for key in _SCHEMA_KEYS if key in schema}
    return ordered | {key: value for key, value in schema.items() if key not in ordered}


@lru_cache(maxsize=512)
def tools_preamble(tools: tuple[str, ...]) -> str:
    """What the system message says about `tools`: one compact schema a line."""
    lines = [
        json.dumps(function_schema(tool), ensure_ascii=False, separators=(",", ":"))
        for tool in tools
    ]
    return _PREAMBLE.format(schemas="\n".join(lines))


def render_tool_calls(calls: Sequence[ToolCall]) -> str:
    """One `<tool_call>` block a call, a line break between blocks."""
    return "\n".join(
        f'{CALL_OPEN}\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, '
        f'"arguments": {_spaced(call.arguments)}}}\n{CALL_CLOSE}'
        for call in calls
    )


def render_answer(content: str, calls: Sequence[ToolCall]) -> str:
    """An assistant turn's text: its content, then its calls."""
    return "\n".join(part for part in (content, render_tool_calls(calls)) if part)


def render_tool_result(content: str) -> str:
    """A tool's result for a template that has no role for tools."""
    return f"<tool_response>\n{content}\n</tool_response>"


def visible_text(text: str) -> str:
    """An answer without the `<think>…</think>` block that it starts with."""
    match = _REASONING.match(text)
    return text[match.end() :] if match else text


def parse_tool_calls(text: str) -> tuple[tuple[ToolCall, ...], tuple[str, ...]]:
    """Read the calls of an answer, and one fault for each call that cannot be read.

    Understands `<tool_call>` blocks (a missing last `</tool_call>` is forgiven) and answers that
    are nothing but JSON, as Llama 3 (`{"name", "parameters"}`) and Mistral (`[TOOL_CALLS] […]`)
    write them. Text that holds no call gives `((), ())`. Never raises.
    """
    body = visible_text(text)
    if CALL_OPEN in body:
        return _parse_blocks(body)
    return _parse_bare(body.strip())


def _spaced(arguments: str) -> str:
    return json.dumps(json.loads(arguments), ensure_ascii=False)


def _parse_blocks(text: str) -> tuple[tuple[ToolCall, ...], tuple[str, ...]]:
    calls: list[ToolCall] = []
    faults: list[str] = []
    position = text.find(CALL_OPEN)
    while position >= 0:
        start = position + len(CALL_OPEN)
        try:
            value, end = _decode(text, start)
            if text[end:].strip() and not text[end:].lstrip().startswith(CALL_CLOSE):
                raise ValueError(f"{CALL_CLOSE} is missing after the call")
            calls.append(_call(value))
        except (ValueError, RecursionError) as error:
            end = start
            faults.append(f"call {len(calls) + len(faults) + 1}: {error}")
        position = text.find(CALL_OPEN, end)
    return tuple(calls), tuple(faults)


def _parse_bare(text: str) -> tuple[tuple[ToolCall, ...], tuple[str, ...]]:
    """An answer that is only JSON; anything that does not look like a call is plain text."""
    mark = next((mark for mark in NATIVE_MARKS if text.startswith(mark)), "")
    text = text[len(mark) :].lstrip()
    if not text.startswith(("{", "[")):
        return (), ((f"no call after {mark}",) if mark else ())
    try:
        value, end = _decode(text, 0)
        items = value if isinstance(value, list) else [value]
        if text[end:].strip() or not items or not all(map(_looks_like_call, items)):
            raise ValueError("not a list of calls")
        return tuple(_call(item) for item in items), ()
    except (ValueError, RecursionError) as error:
        return (), ((str(error),) if mark else ())


def _looks_like_call(value: Any) -> bool:
    return (
        isinstance(value, dict) and "name" in value and any(key in value for key in _ARGUMENT_KEYS)
    )


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that starts at `start` (after white space), and where it ends."""
    begin = len(text) - len(text[start:].lstrip())
    return json.JSONDecoder(parse_constant=_refuse).raw_decode(text, begin)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _call(value: Any) -> ToolCall:
    """One call from its JSON value. Raises ValueError."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError(f"no function name in {json.dumps(value)[:_MAX_SHOWN]}")
    arguments: Any = next((value[key] for key in _ARGUMENT_KEYS if key in value), {})
    if isinstance(arguments, str):
        arguments = _decode(arguments, 0)[0]
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {value['name']!r} are not an object")
    return ToolCall(name=value["name"], arguments=compact_json(arguments))
