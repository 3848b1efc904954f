"""Which old rows an epoch takes, and what they teach."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.train.rehearse import Pool, rehearsed, spread, turns
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


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.randoms())
def test_a_kind_is_spread_over_the_whole_order(kinds, draw):
    order = list(range(len(kinds)))
    draw.shuffle(order)
    found = spread(order, kinds)
    assert sorted(found) == sorted(order)
    for kind in set(kinds):
        places = [place for place, index in enumerate(found) if kinds[index] == kind]
        assert [found[p] for p in places] == [i for i in order if kinds[i] == kind]
        apart = len(kinds) / len(places)
        gaps = [b - a for a, b in itertools.pairwise(places)]
        assert all(abs(gap - apart) < len(set(kinds)) for gap in gaps)


def test_a_part_of_the_rows_holds_every_answer():
    same = [replace(row(10, n), ids=row(10, n % 20).ids) for n in range(100)]
    chosen = turns([Pool(same, 0.5)], 200, 0, 0)
    assert len(chosen) == 20
    assert len({index % 20 for index in chosen}) == 20
    again = turns([Pool(same, 0.5)], 200, 0, 1)
    assert len({index % 20 for index in again}) == 20
    assert not set(chosen) & set(again)


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
