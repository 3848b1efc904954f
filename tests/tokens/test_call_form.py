"""How templates write a call, found by rendering one."""

import pytest

from lamina.data.example import Message, ToolCall
from lamina.tokens.call_form import HERMES, call_form
from lamina.tokens.template import ChatFormat
from lamina.tokens.tools import parse_tool_calls
from tests.tokens.formats import CHAT_FAMILIES, format_of, tokenizer_of

BARE = (
    "{%- if tools %}{{- tools | tojson + '\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}"
    "{%- if m['tool_calls'] %}{%- for c in m['tool_calls'] %}"
    '{{- \'{"name": "\' + c.function.name + \'", "parameters": \' }}'
    "{{- c.function.arguments | tojson }}{{- '}' }}{%- endfor %}"
    "{%- else %}{{- m['content'] }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
STRANGE = BARE.replace('{"name": "', "CALL ").replace('", "parameters": ', " WITH ")


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_a_call_in_the_form_is_what_the_template_writes(family):
    fmt = format_of(family)
    form = call_form(fmt)
    call = ToolCall(name="add", arguments='{"a": 1}')
    text = form.before + call.name + form.between + call.arguments + form.after
    assert parse_tool_calls(text) == ((ToolCall(name="add", arguments='{"a":1}'),), ())
    turns = (
        Message(role="user", content="x"),
        Message(role="assistant", content="", tool_calls=(call,)),
    )
    spans = fmt.rendering(turns).sequences[-1]
    written = "".join(chunk.text for chunk in spans[-1].chunks)
    assert text in written
    assert form.repeats


def test_bare_json_holds_one_call():
    form = call_form(ChatFormat(tokenizer_of("smol"), template=BARE))
    assert form.before == '{"name": "'
    assert form.between == '", "parameters": '
    assert not form.repeats


def test_a_form_that_we_do_not_read_gives_hermes():
    assert "CALL " in STRANGE
    assert call_form(ChatFormat(tokenizer_of("smol"), template=STRANGE)) == HERMES
