"""The loop against a plain implementation, and against itself in several sittings."""

import shutil

import pytest
import torch

from lamina.bases import families
from lamina.core.errors import TrainError, TrainInterrupted
from lamina.core.seeds import derive
from lamina.lowrank.attach import attached
from lamina.tokens.batch import collate
from lamina.tokens.pack import plan_batches
from lamina.train import checkpoint, loop, text_lesson
from lamina.train.held_out import mean_loss
from lamina.train.job import fresh_factors
from lamina.train.loop import LEAST_JUDGES, MOST_SKIPPED
from lamina.train.schedule import learning_rate, warmup_steps
from tests.tolerance import TOLERANCE
from tests.train.test_objective import reference
from tests.train.tiny import PAD, job, model, raw, recipe, row, rows, run, stop_after


def plain(how, data, steps):
    """Training as anybody would write it: full logits, autograd, AdamW, one parameter a factor."""
    exact = model()
    linears = families.linears(exact)
    start = fresh_factors(linears, how)
    leaves = {n: (f.a_RI.requires_grad_(), f.b_OR.requires_grad_()) for n, f in start.items()}
    flat = [each for pair in leaves.values() for each in pair]
    sides = (
        (1.0, [a for a, _ in leaves.values()]),
        (how.lr_ratio, [b for _, b in leaves.values()]),
    )
    groups = [{"params": some, "times": times} for times, some in sides]
    optimiser = torch.optim.AdamW(groups, betas=how.betas, weight_decay=how.weight_decay)
    plan, epoch, losses = [], 0, []
    while len(plan) < steps:
        seed = derive(how.seed, "order")
        plan += plan_batches([len(r) for r in data], how.batch_tokens, seed, epoch)
        epoch += 1
    for step in range(steps):
        batch = collate([data[i] for i in plan[step]], PAD)
        weights = {n: linears[n].weight + how.scale * (b @ a) for n, (a, b) in leaves.items()}
        loss = reference(exact, batch, weights).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flat, how.clip)
        for group in optimiser.param_groups:
            rate = learning_rate(how, step, steps, warmup_steps(how, steps))
            group["lr"] = rate * group["times"]
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses, leaves


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scaling": "rslora", "weight_decay": 0.1, "clip": 0.3},
        {"lr_ratio": 4.0, "weight_decay": 0.1},
        {"ranks": {"q_proj": 1, "mlp.down_proj": 5, "layers.0.mlp.down_proj": 3}},
    ],
)
def test_equals_a_plain_implementation(tmp_path, changes):
    how = recipe(steps=12, lr=5e-3, **changes)
    data = rows()
    outcome, events = run(job(tmp_path, recipe=how, rows=data, eval_rows=[]))
    losses, leaves = plain(how, data, 12)
    ours = [event["loss"] for event in events if event["event"] == "step"]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(losses), rtol=1e-4, atol=1e-4)
    assert outcome.progress.best_step == 12  # without held-out rows the last factors count
    for name, (a, b) in leaves.items():
        found = outcome.factors[name]
        torch.testing.assert_close(found.a_RI, a.detach(), **TOLERANCE[torch.float32])
        torch.testing.assert_close(found.b_OR, b.detach(), **TOLERANCE[torch.float32])
        assert found.b_OR.abs().max() > 1e-3  # it did learn


def test_learns_and_leaves_the_base_alone(tmp_path):
    base = model()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    data = rows(6)
    outcome, _ = run(job(tmp_path, on=base, steps=30, rows=data, eval_rows=data))
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert outcome.progress.best_loss < outcome.progress.first_loss - 0.5
    with attached(base, outcome.factors, families.linears(base)):
        again = mean_loss(base, [collate([each], PAD) for each in data])
    assert again == pytest.approx(outcome.progress.best_loss, rel=1e-4)


def test_a_warm_start_keeps_what_lies_below(tmp_path):
    on = model(num_hidden_layers=3)
    first, _ = run(job(tmp_path / "first", on=on))
    how = {"above": 0.7, "eval_rows": [], "start": first.factors}
    second, _ = run(job(tmp_path / "second", on=on, **how))
    before, after = raw(first), raw(second)
    assert set(before) == set(after)
    for name in before:
        assert (before[name] == after[name]) == (families.layer_of(name) < 2), name
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path / "again", on=on, **how), stop_after(2))
    again, _ = run(job(tmp_path / "again", on=on, **how))
    assert raw(again) == after


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of nine steps with a held-out loss at every second, in one sitting."""
    return run(job(tmp_path_factory.mktemp("whole"), **NINE))


NINE = {"steps": 9, "eval_every": 2, "patience": None}


@pytest.mark.parametrize("every", [1, 2, 4])
def test_in_many_sittings_to_the_bit(tmp_path, whole, every):
    for _ in range((9 - 1) // every):
        with pytest.raises(TrainInterrupted, match="go on with: go on"):
            run(job(tmp_path, **NINE), stop_after(every))
    outcome, _ = run(job(tmp_path, **NINE), stop_after(every))
    assert raw(outcome) == raw(whole[0])
    same = {"seconds": 0.0}
    assert outcome.progress.model_copy(update=same) == whole[0].progress.model_copy(update=same)
    assert outcome.recipe == whole[0].recipe


def test_in_two_sittings_with_two_rates_to_the_bit(tmp_path):
    """B's moments lie in the same buffer as with one rate, and come back."""
    whole, _ = run(job(tmp_path / "whole", **NINE, lr_ratio=4.0))
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path / "parts", **NINE, lr_ratio=4.0), stop_after(4))
    outcome, _ = run(job(tmp_path / "parts", **NINE, lr_ratio=4.0))
    assert raw(outcome) == raw(whole)
    single, _ = run(job(tmp_path / "single", **NINE))
    assert raw(single) != raw(whole)


def test_killed_between_two_checkpoints(tmp_path, whole):
    """What was done after the last checkpoint is done again, the same."""
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path, **NINE), stop_after(3))
    old = tmp_path / "old"
    shutil.copyfile(tmp_path / checkpoint.FILE, old)
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path, **NINE), stop_after(4))
    shutil.copyfile(old, tmp_path / checkpoint.FILE)
    outcome, events = run(job(tmp_path, **NINE))
    assert events[0] == events[0] | {"event": "resumed", "step": 3}
    assert raw(outcome) == raw(whole[0])


def test_a_finished_run_is_not_trained_again(tmp_path, whole):
    run(job(tmp_path, **NINE))
    outcome, events = run(job(tmp_path, **NINE))
    assert "step" not in {event["event"] for event in events}
    assert raw(outcome) == raw(whole[0])


def test_the_seed_decides(tmp_path, whole):
    again, _ = run(job(tmp_path / "same", **NINE))
    other, _ = run(job(tmp_path / "other", **NINE, seed=1))
    assert raw(again) == raw(whole[0])
    assert raw(other) != raw(whole[0])


def test_a_checkpoint_of_another_rank_is_refused(tmp_path):
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path), stop_after(1))
    with pytest.raises(TrainError, match="of another recipe"):
        run(job(tmp_path, rank=3))


def test_patience_stops_and_the_best_is_kept(tmp_path):
    """Held-out rows unlike the training rows: training hurts after a while."""
    work = job(tmp_path, steps=200, eval_every=1, patience=3, lr=0.1)
    outcome, events = run(work)
    losses = [event["loss"] for event in events if event["event"] == "eval"]
    progress = outcome.progress
    assert progress.stopped == "patience"
    assert progress.step == progress.best_step + 3 < 200
    assert progress.best_loss == min(losses) == losses[progress.best_step]
    with attached(work.model, outcome.factors, work.linears):
        found = mean_loss(work.model, [collate([each], PAD) for each in work.eval_rows])
    assert found == pytest.approx(progress.best_loss, rel=1e-4)
    assert outcome.recipe.steps == 200  # of the schedule, so that the same happens again


# -- numbers that are not finite -------------------------------------------------------------------


def poisoned(token: int = 200):
    """A model for which one token is infinite."""
    base = model(tied=False)
    with torch.no_grad():
        base.get_input_embeddings().weight[token] = torch.inf
    return base


def clean(count: int, seed: int = 0):
    """Rows without the poisoned token, from the tokens below it."""
    made = [row(8, seed + i) for i in range(count)]
    return [type(r)(r.ids % 150 + 8, r.mask, r.example) for r in made]


def bad(count: int):
    """Rows with it."""
    made = clean(count, 50)
    for each in made:
        each.ids[1] = 200
    return made


def test_a_poisoned_batch_is_skipped(tmp_path):
    work = job(
        tmp_path,
        on=poisoned(),
        rows=[*clean(5), *bad(1)],
        eval_rows=clean(2, 30),
        batch_tokens=16,
        steps=12,
    )
    outcome, events = run(work)
    steps = [event for event in events if event["event"] == "step"]
    skipped = [event for event in steps if event["loss"] is None]
    assert 0 < len(skipped) < len(steps) == 12
    assert outcome.progress.skipped_in_row < MOST_SKIPPED
    assert all(torch.isfinite(f.a_RI).all() for f in outcome.factors.values())


def test_resuming_after_nothing_but_skipped_steps(tmp_path):
    fields = {"on": poisoned(), "rows": bad(3), "eval_rows": []}
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path, **fields), stop_after(2))
    with pytest.raises(TrainError, match="not finite"):
        run(job(tmp_path, **fields))


def test_divergence_is_an_error_and_keeps_the_checkpoint(tmp_path):
    work = job(tmp_path, on=poisoned(), rows=bad(3), eval_rows=[], steps=50)
    with pytest.raises(TrainError, match=f"not finite {MOST_SKIPPED} steps in a row"):
        run(work)
    progress, tensors = checkpoint.load(tmp_path)
    assert progress.step == 0
    assert torch.isfinite(tensors["flat"]).all()


def test_an_infinite_stack_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(TrainError, match="before the first step"):
        run(job(tmp_path, on=poisoned(), rows=clean(3), eval_rows=bad(1)))


def test_a_loss_that_becomes_nan_is_never_the_best(tmp_path, monkeypatch):
    losses = iter([2.0, 1.5, float("nan"), float("nan"), 1.7])
    monkeypatch.setattr(text_lesson, "mean_loss", lambda *_: next(losses))
    outcome, events = run(job(tmp_path, steps=50, eval_every=1, patience=3))
    assert (outcome.progress.best_step, outcome.progress.best_loss) == (1, 1.5)
    assert outcome.progress.stopped == "patience"
    assert [e["loss"] for e in events if e["event"] == "eval"] == [2.0, 1.5, None, None, 1.7]


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(TrainError, match="no rows"):
        run(job(tmp_path, rows=[]))


# -- time limits and warm starts -------------------------------------------------------------------


def again(tmp_path, outcome, **fields):
    """A run with the recipe that another one resolved to."""
    assert outcome.recipe.max_minutes is None
    return run(job(tmp_path / "again", recipe=outcome.recipe, **fields))[0]


def test_a_time_limit_becomes_steps(tmp_path):
    outcome, events = run(
        job(tmp_path / "first", steps=100_000, max_minutes=0.005, patience=None, batch_tokens=64)
    )
    (planned,) = [event for event in events if event["event"] == "planned"]
    assert 1 < outcome.recipe.steps == planned["steps"] < 100_000
    assert outcome.progress.seconds < 10
    assert raw(again(tmp_path, outcome)) == raw(outcome)


@pytest.mark.parametrize("available", [1, 2, 5])
def test_a_time_limit_longer_than_the_work(tmp_path, available):
    outcome, _ = run(job(tmp_path / "first", steps=available, max_minutes=10))
    assert outcome.progress.step == outcome.recipe.steps == available
    assert raw(again(tmp_path, outcome)) == raw(outcome)


@pytest.mark.parametrize("overtime", [0.0, 1.1])
def test_a_limit_that_is_over_at_once(tmp_path, monkeypatch, overtime):
    monkeypatch.setattr(loop, "OVERTIME", overtime)
    outcome, _ = run(job(tmp_path / "first", steps=100, max_minutes=1e-6))
    assert outcome.progress.step >= 1
    assert outcome.progress.stopped == "time"
    assert outcome.recipe.stop_after == outcome.progress.step
    assert type(outcome.recipe).parse(outcome.recipe.to_bytes(), "it") == outcome.recipe
    assert raw(again(tmp_path, outcome)) == raw(outcome)


def test_a_time_limited_run_in_two_sittings(tmp_path):
    fields = {"steps": 8, "max_minutes": 10, "eval_every": 3}
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path / "first", **fields), stop_after(2))
    outcome, _ = run(job(tmp_path / "first", **fields))
    assert raw(again(tmp_path, outcome)) == raw(outcome)


def test_warm_start(tmp_path):
    data = rows(6)
    fields = {"rows": data, "eval_rows": data}
    first, _ = run(job(tmp_path / "first", steps=20, **fields))
    warm, _ = run(job(tmp_path / "warm", steps=3, start=first.factors, **fields))
    assert warm.progress.first_loss == pytest.approx(first.progress.best_loss, rel=1e-4)
    assert warm.progress.best_loss <= warm.progress.first_loss
    kept = {name: f.a_RI.clone() for name, f in first.factors.items()}
    assert all(torch.equal(first.factors[name].a_RI, a) for name, a in kept.items())


# -- who judges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("judges", [LEAST_JUDGES - 1, LEAST_JUDGES])
def test_a_few_held_out_rows_do_not_choose_the_factors(tmp_path, judges):
    """Held-out rows unlike the others: known best before anything is learned."""
    few = rows(judges, seed=100)
    outcome, events = run(job(tmp_path, steps=30, lr=0.1, eval_rows=few, eval_every=1, patience=2))
    losses = [event["loss"] for event in events if event["event"] == "eval"]
    progress = outcome.progress
    decided = judges == LEAST_JUDGES
    assert (progress.stopped == "patience") is decided
    assert (progress.best_step < progress.step) is decided
    assert min(losses) < losses[-1]
    assert progress.best_loss == (min(losses) if decided else losses[-1])
