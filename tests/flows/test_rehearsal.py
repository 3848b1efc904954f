"""Rehearsal sets: small, deterministic, travelling with the layer, mixed in by whoever is above."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.data.example import Example, Message
from lamina.flows import learn, rehearsal, runs
from lamina.stack.resolve import resolve
from lamina.tokens.mask import Encoded
from tests.flows.world import Said, request, write_rows


def row(number: int, answer: str = "fine") -> Example:
    return Example(
        messages=(
            Message(role="user", content=f"question {number}"),
            Message(role="assistant", content=answer),
        )
    )


def encoded(length: int) -> Encoded:
    return Encoded(
        ids=np.zeros(length, dtype=np.int32), mask=np.ones(length, dtype=np.bool_), example="x"
    )


def do(store, what):
    return learn.execute(store, learn.prepare(store, what, Said()), Said())


def test_the_sample_is_small_and_does_not_depend_on_order():
    rows = [row(n) for n in range(300)]
    data = rehearsal.sample(rows)
    assert data == rehearsal.sample(rows[::-1])
    assert len(data.splitlines()) == rehearsal.MOST_ROWS
    long = [row(n, "word " * 1000) for n in range(100)]
    assert 0 < len(rehearsal.sample(long)) <= rehearsal.MOST_BYTES
    assert rehearsal.sample([row(0, "word " * 20_000)]) == b""  # too large to travel


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.lists(st.integers(1, 50), min_size=1, max_size=10),
    st.floats(0.01, 0.8),
)
def test_old_rows_make_the_asked_share_of_the_tokens(own, old, share):
    mixed = rehearsal.mixed([encoded(n) for n in own], [encoded(n) for n in old], share)
    total = sum(map(len, mixed))
    old_tokens = total - sum(own)
    assert [len(r) for r in mixed[: len(own)]] == own
    assert old_tokens >= share * total - 1e-6
    assert old_tokens - max(old) < share / (1 - share) * sum(own)


def test_nothing_is_mixed_in_without_old_rows_or_share():
    own = (encoded(3),)
    assert rehearsal.mixed(own, (), 0.5) == own
    assert rehearsal.mixed(own, (encoded(2),), 0.0) == own


def test_a_layer_carries_its_sample_and_the_next_one_trains_on_it(store, tmp_path):
    below = resolve(store, "second")
    old = rehearsal.of_layers(store, below.layers)
    assert old
    data = write_rows(tmp_path / "more.jsonl", word="tool")
    asked = request(data, "third", on="second", rehearsal=0.5, accept_regression="a test")
    run = learn.prepare(store, asked, Said())
    assert run.rows(runs.REHEARSAL_ROWS) == old
    with_old = learn.execute(store, run, Said())
    plain = request(data, "fourth", on="second", rehearsal=0.0, accept_regression="a test")
    without = do(store, plain)
    assert with_old.layer.digest != without.layer.digest
    carried = with_old.stack.layers[-1].manifest.blob(rehearsal.FILE)
    rows = [json.loads(line) for line in store.read(carried.digest).splitlines()]
    assert all("tool" in r["messages"][0]["content"] for r in rows)  # its own rows only


@pytest.mark.parametrize("private", [False, True])
def test_private_rows_do_not_travel(store, tmp_path, private):
    data = write_rows(tmp_path / "rows.jsonl", word="secret")
    done = do(store, request(data, "mine", private=private))
    assert (store.manifest(done.layer.digest).blob(rehearsal.FILE) is None) == private
