"""Draws have the distribution that they should, from a seed and a place alone."""

from collections import Counter

import pytest
import torch

from lamina.bases import sampling as module
from lamina.bases.sampling import Drawer, Sampling

LOGITS = torch.tensor([2.0, 1.5, 0.5, -1.0, -9.0])
DRAWS = 4000


def shares(logits=LOGITS, **options):
    drawer = Drawer(Sampling(seed=3, **({"temperature": 1.0} | options)))
    counted = Counter(drawer.next(logits) for _ in range(DRAWS))
    return torch.tensor([counted[i] / DRAWS for i in range(len(logits))])


def near(found, wanted):
    """Within five standard deviations of a share over DRAWS draws."""
    wanted = wanted / wanted.sum()
    assert ((found - wanted).abs() <= 5 * (wanted * (1 - wanted) / DRAWS).sqrt()).all()
    assert (found[wanted == 0] == 0).all()


def test_without_limits_draws_follow_the_softmax():
    near(shares(), LOGITS.softmax(0))
    near(shares(temperature=0.5), (LOGITS / 0.5).softmax(0))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"top_k": 2}, 2),
        ({"top_k": 99}, 5),
        ({"top_p": 0.3}, 1),
        ({"top_p": 0.8}, 2),
        ({"min_p": 0.2}, 3),
        ({"min_p": 1.0}, 1),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.5}, 2),
    ],
)
def test_limits_leave_the_likeliest(options, left):
    wanted = LOGITS.softmax(0)
    wanted[left:] = 0
    near(shares(**options), wanted)


def test_many_likely_tokens_are_all_looked_at(monkeypatch):
    monkeypatch.setattr(module, "CANDIDATES", 2)
    logits = torch.zeros(40)
    wanted = torch.zeros(40)
    wanted[:20] = 1
    found = shares(logits, top_p=0.5)
    assert int((found > 0).sum()) == 20
    assert found[found > 0].max() < 5 * found[found > 0].min()


def test_greedy_is_the_argmax():
    drawer = Drawer(Sampling())
    assert drawer.plain
    assert [drawer.next(LOGITS) for _ in range(5)] == [0] * 5


def test_a_seed_and_a_place_decide():
    def draws(seed):
        drawer = Drawer(Sampling(temperature=1.5, seed=seed))
        return [drawer.next(LOGITS) for _ in range(40)]

    assert draws(1) == draws(1) != draws(2)


def test_what_may_not_come_does_not():
    forbidden = LOGITS.clone()
    forbidden[:2] = -torch.inf
    assert (shares(forbidden)[:2] == 0).all()
    assert (shares(forbidden, top_p=0.9)[:2] == 0).all()
    assert Drawer(Sampling()).next(forbidden) == 2


def test_presence_and_frequency_are_taken_from_what_was_said():
    drawer = Drawer(Sampling(presence_penalty=0.6))
    assert [drawer.next(LOGITS) for _ in range(4)] == [0, 1, 0, 0]
    drawer = Drawer(Sampling(frequency_penalty=0.3))
    # 2.0 1.5 | 1.7 | 1.4 -> 1 | 1.2: 1.4 -> 0 | …
    assert [drawer.next(LOGITS) for _ in range(5)] == [0, 0, 1, 0, 1]


def test_repetition_counts_the_prompt_too():
    assert Drawer(Sampling(repetition_penalty=2.0), prompt=[0]).next(LOGITS) == 1
    negative = torch.tensor([-1.0, -1.5])
    assert Drawer(Sampling(repetition_penalty=2.0), prompt=[0]).next(negative) == 1


def test_logits_are_left_as_they_were():
    before = LOGITS.clone()
    drawer = Drawer(Sampling(temperature=1.0, presence_penalty=1.0, top_p=0.9))
    for _ in range(5):
        drawer.next(LOGITS)
    assert torch.equal(LOGITS, before)
