import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.tokens.pack import padding_share, plan_batches

lengths_of = st.lists(st.integers(1, 300), max_size=60)


@given(lengths_of, st.integers(1, 600), st.integers(0, 99), st.integers(0, 9))
def test_every_row_once_and_no_batch_over_its_size(lengths, batch_tokens, seed, epoch):
    batches = plan_batches(lengths, batch_tokens, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[row] for row in batch)
        assert padded <= batch_tokens or len(batch) == 1


@given(lengths_of, st.integers(0, 99))
def test_a_plan_depends_on_nothing_but_its_arguments(lengths, seed):
    assert plan_batches(lengths, 256, seed, 3) == plan_batches(list(lengths), 256, seed, 3)


@pytest.mark.parametrize("count", [500, 3000])
@pytest.mark.parametrize(("median", "sigma"), [(100, 0.6), (250, 0.8), (400, 0.5)])
def test_little_is_spent_on_padding(median, sigma, count):
    drawn = np.random.default_rng(count).lognormal(np.log(median), sigma, count)
    lengths = np.clip(drawn, 8, 1024).astype(int).tolist()
    assert padding_share(lengths, plan_batches(lengths, 2048, 0, 0)) < 0.05


def test_short_rows_fill_their_batches():
    batches = plan_batches([64] * 1000, 2048, 0, 0)
    assert sorted(map(len, batches)) == [8] + [32] * 31


def test_epochs_differ_in_order_and_grouping():
    lengths = np.random.default_rng(0).integers(50, 500, 400).tolist()
    first, second = (plan_batches(lengths, 2048, 7, epoch) for epoch in (0, 1))
    assert first != second
    together = [{frozenset(batch) for batch in plan} for plan in (first, second)]
    assert len(together[0] & together[1]) < len(first) / 2


def test_batches_do_not_come_in_order_of_length():
    lengths = list(range(10, 410))
    longest = [max(lengths[row] for row in batch) for batch in plan_batches(lengths, 1024, 0, 0)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_no_rows_no_batches():
    assert plan_batches([], 64, 0, 0) == []
    assert padding_share([], []) == 0


def test_batches_of_nothing_are_refused():
    with pytest.raises(ValueError, match="batch_tokens"):
        plan_batches([1], 0, 0, 0)
