"""Rehearsal sets: small, deterministic, travelling with the layer, mixed in by whoever is above."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.errors import UsageError
from lamina.data.example import Example, Message, ToolCall
from lamina.flows import learn, rehearsal, runs, update
from lamina.flows.inventory import describe, render
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


def call(number: int) -> Example:
    """A row of another kind."""
    answer = Message(
        role="assistant",
        content="",
        tool_calls=(ToolCall(name="add", arguments=f'{{"a":{number}}}'),),
    )
    tool = '{"type":"function","function":{"name":"add"}}'
    return Example(messages=(row(number).messages[0], answer), tools=(tool,))


def rows_in(data: bytes) -> list[Example]:
    return [Example.from_json(json.loads(line)) for line in data.splitlines()]


def kinds_in(data: bytes) -> Counter:
    return Counter(map(rehearsal.stratum, rows_in(data)))


@st.composite
def anything(draw):
    """A row of any stratum: plain or chat, long or short, with tools, calls and turns."""
    number = draw(st.integers(0, 10**6))
    if draw(st.booleans()):
        return Example(text="w" * draw(st.integers(1, 3000)) + str(number))
    if draw(st.booleans()):
        return call(number)
    turns = draw(st.integers(1, 2)) * row(number, "a" * draw(st.integers(1, 3000))).messages
    return Example(messages=turns)


strata = st.builds(rehearsal.Stratum, *[st.booleans()] * 4, st.integers(0, 12))


def encoded(length: int) -> Encoded:
    return Encoded(
        ids=np.zeros(length, dtype=np.int32), mask=np.ones(length, dtype=np.bool_), example="x"
    )


def do(store, what):
    return learn.execute(store, learn.prepare(store, what, Said()), Said())


def test_the_sample_is_small_and_does_not_depend_on_order():
    rows = [row(n) for n in range(rehearsal.MOST_ROWS + 50)]
    data = rehearsal.sample(rows)
    assert data == rehearsal.sample(rows[::-1])
    assert len(data.splitlines()) == rehearsal.MOST_ROWS
    long = [row(n, "word " * 1000) for n in range(100)]
    assert 0 < len(rehearsal.sample(long)) <= rehearsal.MOST_BYTES
    assert rehearsal.sample([row(0, "word " * 20_000)]) == b""  # too large to travel


@given(st.dictionaries(strata, st.integers(1, 400), min_size=1), st.integers(1, 100))
def test_every_stratum_gets_its_share_of_the_seats(sizes, rows):
    found = rehearsal.seats(sizes, rows)
    room = min(rows, sum(sizes.values()))
    assert sum(found.values()) == room
    assert all(found[s] <= size for s, size in sizes.items())
    if len(sizes) <= room:
        assert min(found.values()) >= 1
        for one, size in sizes.items():  # the larger a stratum, the more seats
            assert all(found[one] <= found[s] + 1 for s in sizes if sizes[s] >= size)
    else:  # the rarest first
        seated = [sizes[s] for s, n in found.items() if n]
        assert max(seated) <= min(sizes[s] for s, n in found.items() if not n)
    if len(sizes) == 1 or min(sizes.values()) * room >= sum(sizes.values()):
        share = {s: room * size / sum(sizes.values()) for s, size in sizes.items()}
        assert all(found[s] <= share[s] + 1 for s in sizes)
    assert found == rehearsal.seats(dict(reversed(sizes.items())), rows)


@given(st.lists(anything(), max_size=60), st.integers(1, 20), st.integers(200, 20_000), st.data())
def test_the_sample_fits_and_does_not_depend_on_order(rows, most_rows, most_bytes, data):
    found = rehearsal.sample(rows, most_rows, most_bytes)
    assert len(found) <= most_bytes
    assert len(rows_in(found)) <= most_rows
    assert set(rows_in(found)) <= set(rows)
    assert found == rehearsal.sample(data.draw(st.permutations(rows)), most_rows, most_bytes)
    whole = rehearsal.sample(rows, len(rows) or 1, 1 << 30)
    assert set(rows_in(whole)) == set(rows)
    if len(whole) <= most_bytes and len(set(rows)) <= most_rows:
        assert found == whole


def test_a_rare_kind_is_in_the_sample():
    common = [row(n) for n in range(2000)]
    rare = [call(n) for n in range(3)]
    kinds = kinds_in(rehearsal.sample([*common, *rare]))
    assert kinds[rehearsal.stratum(rare[0])] == 1
    assert sum(kinds.values()) == rehearsal.MOST_ROWS


def test_kinds_keep_their_proportion():
    rows = [*(row(n) for n in range(300)), *(call(n) for n in range(100, 200))]
    kinds = kinds_in(rehearsal.sample(rows))
    assert sorted(kinds.values()) == [rehearsal.MOST_ROWS // 4, rehearsal.MOST_ROWS * 3 // 4]


def test_one_huge_row_does_not_crowd_out_others():
    huge = row(0, "word " * 12_000)  # nearly all of the bytes
    others = [row(n) for n in range(1, 2 * rehearsal.MOST_ROWS)]
    found = rows_in(rehearsal.sample([huge, *others]))
    assert huge not in found
    assert len(found) == rehearsal.MOST_ROWS
    assert huge in rows_in(rehearsal.sample([huge, *others[:5]]))  # here all fit


@given(st.sets(st.integers(0, 5000), min_size=1), st.sets(st.integers(0, 5000)))
def test_samples_merge(old, new):
    """Of one stratum, the sample of a sample and new rows is the sample of all of them."""
    rows = [[row(n) for n in sorted(part)] for part in (old, new)]
    merged = rehearsal.sample([*rows_in(rehearsal.sample(rows[0], 8)), *rows[1]], 8)
    assert merged == rehearsal.sample([*rows[0], *rows[1]], 8)


@given(st.sets(st.integers(0, 5000), min_size=1), st.sets(st.integers(0, 5000)))
def test_samples_merge_whatever_the_old_rows_stand_for(old, new):
    rows = [[row(n) for n in sorted(part)] for part in (old, new)]
    older = rows_in(rehearsal.sample(rows[0], 8))
    merged = rehearsal.sample(rows[1], 8, older=older, weight=100)
    assert merged == rehearsal.sample([*rows[0], *rows[1]], 8)


def test_an_old_row_has_the_share_of_the_rows_it_stands_for():
    older = rows_in(rehearsal.sample([row(n) for n in range(10_000)], 64))
    new = [call(n) for n in range(100, 600)]
    assert sorted(kinds_in(rehearsal.sample(new, 64, older=older)).values()) == [7, 57]
    assert sorted(kinds_in(rehearsal.sample(new, 64, older=older, weight=156)).values()) == [3, 61]
    few = rehearsal.sample(new, 64, older=older[:20], weight=156)  # the others were answered anew
    assert sorted(kinds_in(few).values()) == [20, 44]


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


@pytest.mark.parametrize("kind", [None, "sample", "none"])
def test_a_layer_says_which_set_it_carries(store, tmp_path, kind):
    data = write_rows(tmp_path / "rows.jsonl", word="fruit")
    done = do(store, request(data, "mine", rehearsal_set=kind))
    blob = store.manifest(done.layer.digest).blob(rehearsal.FILE)
    assert done.config.rehearsal == (kind or "sample")
    assert (blob is None) == (kind == "none")
    found = describe(store, "mine")
    assert f"rehearsal set: {kind or 'sample'}" in render(found)
    assert found["layers"][0]["rehearsal"] == (kind or "sample")


def test_none_stays_none_in_the_next_version(store, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", word="fruit")
    do(store, request(data, "mine", rehearsal_set="none"))
    fresh = write_rows(tmp_path / "fresh.jsonl", 20, word="tree")
    asked = update.Request(stack="mine", data=[fresh], accept_regression="a test")
    new = learn.execute(store, update.prepare(store, asked, Said()), Said())
    assert new.config.rehearsal == "none"
    assert rehearsal.of_layers(store, new.stack.layers) == ()


def test_wrong_kinds_are_refused_before_anything_is_read(store, tmp_path):
    missing = str(tmp_path / "no such file.jsonl")
    with pytest.raises(UsageError, match="unknown rehearsal set 'all'") as caught:
        learn.prepare(store, request(missing, rehearsal_set="all"), Said())
    assert caught.value.hint == "known: sample, synthesised, none"
    with pytest.raises(UsageError, match="sample of private rows"):
        learn.prepare(store, request(missing, rehearsal_set="sample", private=True), Said())
    assert rehearsal.asked_for("synthesised", private=True) == "synthesised"
    assert rehearsal.asked_for(None, private=True) is None
