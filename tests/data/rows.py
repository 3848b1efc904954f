"""Rows and examples for the tests of this room."""

import json

from hypothesis import strategies as st

from lamina.core.digest import compact_json
from lamina.data.example import Example, Message, ToolCall

texts = st.text(st.characters(codec="utf-8"), max_size=20)
filled = texts.filter(lambda text: text.strip() and "\0" not in text)
names = st.text("abcdefg_", min_size=1, max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(names, json_values, max_size=3)


def compact(value):
    return compact_json(value)


tool_calls = st.builds(ToolCall, name=names, arguments=objects.map(compact))
calling = st.builds(
    Message,
    role=st.just("assistant"),
    content=texts,
    tool_calls=st.lists(tool_calls, max_size=2).map(tuple),
)
saying = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "tool"]),
    content=texts,
    name=st.none() | names,
)
tools = st.builds(
    lambda name, parameters: compact(
        {"type": "function", "function": {"name": name, "parameters": parameters}}
    ),
    names,
    objects,
)
accepted_calls = st.lists(
    st.dictionaries(
        names, st.dictionaries(names, st.lists(json_values, max_size=2)), min_size=1, max_size=1
    ),
    max_size=2,
)


@st.composite
def examples(draw):
    """Any example that can be written down."""
    if draw(st.booleans()):
        return Example(text=draw(texts))
    choices = tuple(draw(st.lists(texts, max_size=3)))
    calls = draw(st.none() | accepted_calls)
    return Example(
        messages=tuple(draw(st.lists(calling | saying, max_size=5))),
        tools=tuple(draw(st.lists(tools, max_size=2))),
        accept=tuple(draw(st.lists(texts, max_size=2))),
        choices=choices,
        answer_index=draw(st.none() | st.sampled_from(range(len(choices)))) if choices else None,
        accept_calls=None if calls is None else compact(calls),
    )


def chat(question="What is 1 + 1?", answer="2", **columns):
    """A chat row."""
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        **columns,
    }


def example(question="What is 1 + 1?", answer="2", **columns):
    """An example of one question and one answer."""
    return Example.from_json(chat(question, answer, **columns))


def write(path, *rows):
    """Rows as JSON lines; a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path
