import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.core.errors import DataError
from lamina.data.example import Example, Message
from lamina.tokens.mask import encode, encode_all
from tests.tokens.formats import format_of

WHOLE = 1_000_000


def chat(*texts):
    roles = ("user", "assistant") * len(texts)
    return Example(
        messages=tuple(Message(role=r, content=t) for r, t in zip(roles, texts, strict=False))
    )


def targets(rows):
    return [int(token) for row in rows for token in row.ids[row.mask]]


sizes = st.lists(st.integers(0, 60), min_size=2, max_size=6).filter(lambda s: len(s) % 2 == 0)


@pytest.mark.parametrize("family", ["smol", "gemma"])
@settings(max_examples=40, deadline=None)
@given(sizes=sizes, max_length=st.integers(4, 80))
def test_every_target_is_trained_exactly_once(family, sizes, max_length):
    example = chat(*("word " * size + str(i) for i, size in enumerate(sizes)))
    fmt = format_of(family)
    whole = encode(example, fmt, max_length=WHOLE)
    result = encode_all([example], fmt, max_length=max_length, overlong="split")
    assert targets(result.rows) == targets(whole)
    assert all(len(row) <= max_length and row.mask.any() for row in result.rows)
    assert not any(row.mask[0] for row in result.rows)
    assert result.report.overlong == (len(whole[0]) > max_length)
    assert result.report.windows == (len(result.rows) if result.report.overlong else 0)
    assert result.report.supervised_tokens == len(targets(whole))
    assert result.report.tokens == sum(map(len, result.rows))


def test_windows_overlap_by_a_quarter_as_context():
    fmt = format_of("smol")
    example = chat("hi", "abc " * 200)
    rows = encode(example, fmt, max_length=64)
    assert len(rows) > 2
    for before, after in pairwise(rows):
        assert after.ids[:16].tolist() == before.ids[-16:].tolist()
        assert not after.mask[:16].any()
        assert after.mask[16:].all()


def test_every_window_repeats_the_bos_that_the_model_expects():
    fmt = format_of("gemma")
    rows = encode(chat("hi", "abc " * 200), fmt, max_length=64)
    assert len(rows) > 2
    assert {int(row.ids[0]) for row in rows} == {fmt.bos_id}


def test_text_windows_train_every_token_but_the_first():
    fmt = format_of("smol")
    example = Example(messages=(), text="abc def " * 100)
    (whole,) = encode(example, fmt, max_length=WHOLE)
    rows = encode(example, fmt, max_length=50)
    assert targets(rows) == whole.ids[1:].tolist()


def test_windows_without_targets_are_dropped_and_counted():
    result = encode_all([chat("word " * 300, "yes")], format_of("smol"), max_length=64)
    assert len(result.rows) == result.report.windows
    assert result.report.dropped_windows > 3
    assert result.report.lost == 0


def test_truncation_counts_the_rows_it_loses():
    examples = [chat("word " * 300, "yes"), chat("hi", "word " * 300), chat("hi", "yes")]
    result = encode_all(examples, format_of("qwen3"), max_length=64, overlong="truncate")
    assert [len(row) == 64 for row in result.rows] == [True, False]
    assert (result.report.rows, result.report.overlong, result.report.lost) == (3, 2, 1)


def test_refusing_lists_every_overlong_row():
    examples = [chat("hi", "word " * 300), chat("hi", "yes"), chat("word " * 300, "yes")]
    with pytest.raises(DataError) as caught:
        encode_all(examples, format_of("qwen3"), max_length=64, overlong="refuse")
    assert [fault.split(" (")[0] for fault in caught.value.faults] == ["row 1", "row 3"]
    assert "64 allowed" in caught.value.faults[0]


def test_template_faults_name_every_row_and_the_reason():
    good = chat("hi", "yes")
    bad = Example(messages=tuple(Message(role="assistant", content=t) for t in "ab"))
    with pytest.raises(DataError, match="2 of 3 rows") as caught:
        encode_all([bad, good, bad], format_of("gemma"), max_length=64)
    assert [fault.split(" (")[0] for fault in caught.value.faults] == ["row 1", "row 3"]
    assert "alternate" in caught.value.faults[0]


def test_unstable_examples_are_counted():
    examples = [chat("q", "<think>a</think>\nx", "q", "y"), chat("q", "x", "q", "y")]
    result = encode_all(examples, format_of("qwen3"), max_length=512)
    assert result.report.unstable_template == 1
    assert [row.example for row in result.rows] == [
        examples[0].content_digest(),
        examples[0].content_digest(),
        examples[1].content_digest(),
    ]


def test_an_example_without_an_answer_is_lost_loudly():
    result = encode_all([chat("q")], format_of("smol"), max_length=64)
    assert (result.rows, result.report.lost) == ((), 1)


def test_a_tiny_max_length_is_refused():
    with pytest.raises(ValueError, match="at least 4"):
        encode_all([chat("q", "a")], format_of("smol"), max_length=3)


def test_rows_cannot_be_changed():
    (row,) = encode(chat("q", "a"), format_of("smol"), max_length=64)
    assert row.ids.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        row.ids[0] = 1


def test_thousands_of_rows_take_seconds_and_report_progress():
    examples = [chat(f"question {i}", "answer " * 20, "more", f"ok {i}") for i in range(2500)]
    seen = []
    started = time.monotonic()
    result = encode_all(
        examples, format_of("smol"), max_length=512, progress=lambda *at: seen.append(at)
    )
    assert time.monotonic() - started < 10
    assert len(result.rows) == 2500
    assert seen == [(1024, 2500), (2048, 2500), (2500, 2500)]
