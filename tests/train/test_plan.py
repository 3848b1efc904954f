"""Rows that are known are left out, rows that get lost come back, and nothing else changes."""

import math
import shutil

import numpy as np
import pytest
import torch

from lamina.bases import families
from lamina.core.errors import TrainInterrupted
from lamina.lowrank.attach import attached
from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded
from lamina.train import checkpoint
from lamina.train.objective import SoftTargets, token_losses, worst_of_rows
from lamina.train.plan import MOST_LOOKED_AT, STRETCH, Plan
from lamina.train.rehearse import Pool
from tests.train.tiny import PAD, job, model, raw, recipe, row, rows, run, stop_after

KNOWN = 0.1
LIMIT = -math.log(KNOWN)
SELECTING = {
    "known": KNOWN,
    "steps": None,
    "epochs": 60.0,
    "lr": 2e-2,
    "rank": 8,
    "patience": None,
    "rehearsal": 0.3,
    "rehearse": "labels",
    "rows": rows(4),
    "old": rows(3, seed=50),
}


def planned(*, own=6, old=9, share=0.5, **changes):
    how = recipe(**{"known": KNOWN, "batch_tokens": 10_000} | changes)
    own_rows, old_rows = rows(own), rows(old, seed=50)
    return Plan(how, [*own_rows, *old_rows], own, (Pool(old_rows, share, "labels"),))


def in_pass(plan):
    """Row indices of the pass that runs."""
    steps, chosen = 0, []
    while not plan.ends_pass(plan.first_step + steps):
        chosen += plan.batch(plan.first_step + steps)
        steps += 1
    return chosen, plan.first_step + steps


def nothing_lost(chosen):
    return torch.zeros(len(chosen))


def never(chosen):
    raise AssertionError("old rows were looked at")


def test_the_first_pass_takes_every_new_row_and_the_share_of_old_ones():
    how = recipe(batch_tokens=10_000)
    own, old = rows(6), rows(9, seed=50)
    pools = (Pool(old, 0.5, "labels"),)
    every = Plan(how, [*own, *old], 6, pools)
    chosen, step = in_pass(planned())
    assert chosen == [row for number in range(every.first_pass) for row in every.batch(number)]
    assert step == every.first_pass
    assert set(chosen) >= set(range(6))


def test_later_passes_take_what_is_not_known():
    plan = planned()
    chosen, step = in_pass(plan)
    worst = torch.tensor([3 * LIMIT if i in (1, 4, 8) else 0.5 * LIMIT for i in chosen])
    plan.visited(chosen, worst)
    assert 8 in chosen
    assert plan.go_on(step, never)
    second, _ = in_pass(plan)
    assert {i for i in second if i < 6} == {1, 4}
    assert 8 in second  # an old row that its visit showed lost
    assert len(set(second)) == len(second)


def test_old_rows_keep_to_their_share_and_take_turns():
    plan = planned(own=6, old=40, share=0.5)
    chosen, step = in_pass(plan)
    plan.visited(chosen, torch.full((len(chosen),), 2 * LIMIT))
    plan.visited([i for i in chosen if i >= 6], torch.tensor(0.0))
    assert plan.go_on(step, never)
    second, _ = in_pass(plan)
    old = [i for i in second if i >= 6]
    assert not set(old) & set(chosen)  # those not visited yet come first
    of = rows(6) + rows(40, seed=50)
    tokens = sum(len(of[i]) for i in old)
    own = sum(len(of[i]) for i in range(6))
    assert own <= tokens < own + 18


def test_what_looking_finds_lost_is_learned_again_with_all_that_answers_alike():
    old = [row(8, seed=1), row(9, seed=2), row(10, seed=3)]
    answer = old[0].ids[old[0].mask]
    same = Encoded(np.append(np.int32([9, 10]), answer), np.arange(len(answer) + 2) > 1, "alike")
    pool = Pool([*old, same], 0.3, "labels")
    plan = Plan(recipe(known=KNOWN, batch_tokens=10_000), [*rows(4), *pool.rows], 4, (pool,))
    _, step = in_pass(plan)
    plan.visited(range(8), torch.tensor(0.0))
    looked: list[int] = []

    def look(asked):
        looked.extend(asked)
        return torch.tensor([2 * LIMIT if i in (4, 7) else 0.0 for i in asked])

    assert plan.go_on(step, look)  # all is known after one pass: looked at before it ends
    assert len(looked) == 7  # one for each answer
    assert len({4, 7} & set(looked)) == 1
    again, _ = in_pass(plan)
    assert sorted(again) == [4, 7]


def test_it_ends_when_all_is_known():
    plan = planned()
    chosen, step = in_pass(plan)
    plan.visited(chosen, torch.full((len(chosen),), 0.5 * LIMIT))
    assert not plan.go_on(step, nothing_lost)
    assert plan.go_on(step - 1, never)  # not within a pass


def test_a_row_with_one_bad_token_is_not_known():
    """However well the others do: the mean says nothing of the one word that matters."""
    plan = planned(own=1, old=0)
    _, step = in_pass(plan)
    plan.visited([0], torch.tensor([1.01 * LIMIT]))
    assert plan.go_on(step, nothing_lost)
    assert in_pass(plan)[0] == [0]


def test_looking_costs_no_more_than_a_multiple_of_the_new_rows():
    plan = planned(own=2, old=60)
    asked: list[int] = []
    chosen, step = in_pass(plan)
    plan.visited(range(62), torch.tensor(0.0))
    plan.go_on(step, lambda which: asked.extend(which) or nothing_lost(which))
    of = rows(2) + rows(60, seed=50)
    most = MOST_LOOKED_AT * sum(len(r) for r in of[:2])
    assert 0.7 * most < sum(len(of[i]) for i in asked) <= most
    assert chosen


def test_a_pool_without_a_share_is_left_alone():
    plan = planned(share=0.0)
    _, step = in_pass(plan)
    plan.visited(range(6), torch.tensor(0.0))
    looked: list[int] = []
    assert not plan.go_on(step, lambda which: looked.extend(which) or nothing_lost(which))
    assert sorted(looked) == [0, 1, 2, 3, 4, 5]


def test_no_pass_takes_more_old_rows_than_the_first_might():
    plan = planned(own=4, old=60, share=0.5)
    _, step = in_pass(plan)
    plan.visited(range(64), torch.tensor(2 * LIMIT))
    assert plan.go_on(step, never)
    old = [i for i in in_pass(plan)[0] if i >= 4]
    of = rows(4) + rows(60, seed=50)
    own = sum(map(len, of[:4]))
    assert own <= sum(len(of[i]) for i in old) < own + 18


def test_answers_take_turns():
    """Six old rows of two answers: as many of each, however few there is room for."""
    new, (one, two) = rows(1), (row(9, seed=1), row(9, seed=2))
    old = [one, one, one, one, two, two]
    pool = Pool(old, 2 * 9 / (2 * 9 + len(new[0])), "labels")
    plan = Plan(recipe(known=KNOWN, batch_tokens=10_000), [*new, *old], 1, (pool,))
    _, step = in_pass(plan)
    plan.visited(range(7), torch.tensor(2 * LIMIT))
    assert plan.go_on(step, never)
    assert len([i for i in in_pass(plan)[0] if 1 <= i < 5]) == 1
    assert len([i for i in in_pass(plan)[0] if i >= 5]) == 1


def test_new_rows_that_get_lost_again_are_found():
    plan = planned(old=0)
    _, step = in_pass(plan)
    plan.visited(range(6), torch.tensor([0.0, 0, 0, 2 * LIMIT, 0, 0]))
    assert plan.go_on(step, never)
    _, step = in_pass(plan)
    plan.visited([3], torch.tensor(0.0))
    assert plan.go_on(step, lambda which: torch.tensor([2 * LIMIT * (i == 5) for i in which]))
    assert in_pass(plan)[0] == [5]


# -- which old rows a run comes to ----------------------------------------------------------------


def many(share=0.2):
    """A plan whose passes are a few steps long and take some of many old rows."""
    return planned(own=24, old=200, share=share, known=0.0, batch_tokens=40)


@pytest.mark.parametrize("steps", [1, STRETCH, STRETCH + 1, 5 * STRETCH])
def test_the_old_rows_of_a_run_are_those_of_its_batches(steps):
    plan, stretches = many(), -(-steps // STRETCH)
    groups = plan.old_rows(steps)
    found = [i for group in groups for i in group]
    assert len(found) == len(set(found)) < 200
    taken = [plan.batch(step) for step in range(stretches * STRETCH)]
    assert set(found) == {i for batch in taken for i in batch if i >= 24}
    first = {i for batch in taken[:STRETCH] for i in batch if i >= 24}
    assert set(groups[0]) == first


def test_a_run_cut_short_has_the_groups_that_the_longer_one_began_with():
    long = many().old_rows(4 * STRETCH)
    for steps in range(1, 4 * STRETCH):
        short = many().old_rows(steps)
        assert short == long[: len(short)]


def test_an_endless_schedule_is_planned_until_every_old_row_is_in_it():
    groups = planned(own=24, old=9, known=0.0).old_rows(10**9)
    assert sorted(i for group in groups for i in group) == list(range(24, 33))


def test_any_old_row_may_come_where_rows_are_chosen_by_what_they_cost():
    assert planned().old_rows(1) == [list(range(6, 15))]
    assert planned(share=0.0).old_rows(1) == [[]]
    assert many(share=0.0).old_rows(STRETCH) == []


# -- in the loop -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that ends because everything is known."""
    return run(job(tmp_path_factory.mktemp("whole"), **SELECTING))


def test_it_ends_early_and_everything_is_known_then(whole):
    outcome, events = whole
    assert outcome.progress.stopped == "known"
    assert outcome.progress.step < outcome.recipe.steps
    assert outcome.progress.looked_at > 0
    assert "looked" in {event["event"] for event in events}
    on = model()
    with attached(on, outcome.factors, families.linears(on)), torch.no_grad():
        for each in (*SELECTING["rows"], *SELECTING["old"]):
            batch = collate([each], PAD)
            worst = float(worst_of_rows(token_losses(on, batch), batch, None))
            assert worst <= LIMIT * 1.001


def test_it_takes_fewer_tokens_than_every_row_in_every_pass(tmp_path, whole):
    without, _ = run(job(tmp_path, **SELECTING | {"known": 0.0}))
    passes = whole[0].progress.passes + 1
    assert passes > 3
    a_pass = without.progress.tokens / 60
    assert whole[0].progress.tokens < 0.9 * passes * a_pass


@pytest.mark.parametrize("every", [1, 3, 7])
def test_in_many_sittings_to_the_bit(tmp_path, whole, every):
    """Passes begin, rows are looked at and the run ends in any sitting."""
    for _ in range(whole[0].progress.step):
        try:
            outcome, _ = run(job(tmp_path, **SELECTING), stop_after(every))
            break
        except TrainInterrupted:
            continue
    assert raw(outcome) == raw(whole[0])
    same = {"seconds": 0.0}
    assert outcome.progress.model_copy(update=same) == whole[0].progress.model_copy(update=same)
    assert outcome.recipe == whole[0].recipe


def test_killed_between_two_checkpoints(tmp_path, whole):
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path, **SELECTING), stop_after(4))
    kept = tmp_path / "kept"
    shutil.copyfile(tmp_path / checkpoint.FILE, kept)
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path, **SELECTING), stop_after(20))
    shutil.copyfile(kept, tmp_path / checkpoint.FILE)
    outcome, _ = run(job(tmp_path, **SELECTING))
    assert raw(outcome) == raw(whole[0])


def test_the_resolved_recipe_gives_the_same_again(tmp_path, whole):
    changes = {key: SELECTING[key] for key in ("rows", "old")}
    again, _ = run(job(tmp_path, recipe=whole[0].recipe, **changes))
    assert raw(again) == raw(whole[0])


def test_off_by_default_and_then_as_before(tmp_path):
    assert recipe().known == 0
    outcome, events = run(job(tmp_path, steps=4))
    assert outcome.progress.looked_at == outcome.progress.passes == 0
    assert "looked" not in {event["event"] for event in events}


def test_the_last_factors_count(tmp_path):
    """Held-out rows unlike the others: their loss rises, and is not what is judged by."""
    outcome, events = run(job(tmp_path, **SELECTING | {"patience": 1}))
    losses = [event["loss"] for event in events if event["event"] == "eval"]
    assert min(losses) < losses[-1]
    assert outcome.progress.best_step == outcome.progress.step


# -- what a row's tokens cost ----------------------------------------------------------------------


def test_worst_of_rows():
    batch = collate([row(4, seed=1), row(8, seed=2)], PAD)  # two and four targets
    losses = torch.tensor([0.1, 0.7, 0.2, 0.3, 2.0, 0.0])
    assert worst_of_rows(losses, batch, None).tolist() == pytest.approx([0.7, 2.0])


def test_worst_of_rows_above_what_a_teacher_leaves_open():
    batch = collate([row(4, seed=1)], PAD)
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    soft = SoftTargets(torch.zeros(2, 2, dtype=torch.int64), weights)
    exact = torch.tensor([np.log(2.0), 0.0], dtype=torch.float32)
    assert worst_of_rows(exact, batch, soft).tolist() == pytest.approx([0.0], abs=1e-6)
    assert worst_of_rows(exact + 0.3, batch, soft).tolist() == pytest.approx([0.3], abs=1e-6)
