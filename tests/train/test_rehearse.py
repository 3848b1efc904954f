"""Which old rows an epoch takes, and what they teach."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.train.rehearse import Pool, rehearsed, turns
from tests.train.tiny import row

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 2000), st.floats(0.01, 0.9), st.integers(0, 5))
def test_the_share_of_tokens_is_met_by_less_than_a_row(lengths, own, share, epoch):
    chosen = rehearsed(lengths, own, share, 0, epoch)
    taken = sum(lengths[i] for i in chosen)
    wanted = share / (1 - share) * own
    assert wanted <= taken < wanted + max(lengths) + 1e-6


@given(LENGTHS, st.integers(1, 200), st.floats(0.05, 0.5))
def test_over_many_epochs_every_row_takes_its_turn(lengths, own, share):
    epochs = 40 * (1 + sum(lengths) // max(1, round(share / (1 - share) * own)))
    counts = Counter(
        i for epoch in range(min(epochs, 400)) for i in rehearsed(lengths, own, share, 3, epoch)
    )
    if min(epochs, 400) * share / (1 - share) * own > 3 * sum(lengths):
        assert set(counts) == set(range(len(lengths)))


def test_the_same_arguments_choose_the_same_rows():
    assert rehearsed([3, 4, 5], 100, 0.3, 7, 2) == rehearsed([3, 4, 5], 100, 0.3, 7, 2)


def test_no_rows_or_no_share_choose_nothing():
    assert rehearsed([], 100, 0.3, 0, 0) == []
    assert rehearsed([3, 4], 100, 0.0, 0, 0) == []


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_is_below_one(share):
    with pytest.raises(ValueError, match="share"):
        rehearsed([3], 10, share, 0, 0)


def test_a_small_pool_keeps_its_share_beside_a_large_one():
    large = Pool([row(10, n) for n in range(100)], 0.5)
    small = Pool([row(10, n) for n in range(3)], 0.05)
    chosen = turns([large, small], 930, 0, 0)
    of_small = [index for index in chosen if index >= 100]
    assert len(chosen) - len(of_small) == 93
    assert len(of_small) == 10  # 5% of 930 + 930 + 100 tokens
    assert set(of_small) == {100, 101, 102}
    assert turns([small], 930, 0, 0) == rehearsed([10] * 3, 930, 0.05, 0, 0)
    assert turns([Pool([], 0.5), small], 930, 0, 0) == turns([small], 930, 0, 0)
