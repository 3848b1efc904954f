"""Marks of seen rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.errors import DataError
from lamina.data import seen
from lamina.data.example import Example, Message

MARKS = st.sets(st.binary(min_size=seen.WIDTH, max_size=seen.WIDTH), max_size=30)


@given(MARKS)
def test_sets_come_back(marks):
    assert seen.unpack(seen.pack(marks)) == marks


@given(MARKS, st.randoms())
def test_equal_sets_have_equal_bytes(marks, chance):
    shuffled = [*marks, *marks]
    chance.shuffle(shuffled)
    assert seen.pack(shuffled) == seen.pack(marks)
    assert len(seen.pack(marks)) == seen.WIDTH * len(marks)


@pytest.mark.parametrize("data", [b"short", b"B" * 8 + b"A" * 8, b"A" * 16])
def test_anything_else_is_damaged(data):
    with pytest.raises(DataError, match="damaged"):
        seen.unpack(data)


def test_a_mark_is_of_what_decides_training():
    row = Example(messages=(Message(role="user", content="hi"),))
    assert seen.mark(row) == seen.mark(row.model_copy(update={"accept": ("x",)}))
    assert seen.mark(row) != seen.mark(Example(text="hi"))
    assert len(seen.mark(row)) == seen.WIDTH
