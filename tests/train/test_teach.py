"""Old rows taught by the stack itself."""

import shutil

import pytest
import torch

from lamina.bases import families
from lamina.core.errors import TrainInterrupted
from lamina.lowrank.attach import attached
from lamina.tokens.batch import collate
from lamina.train import teach
from lamina.train.objective import token_losses
from lamina.train.rehearse import Pool
from tests.tolerance import TOLERANCE
from tests.train.tiny import PAD, job, model, raw, row, rows, run, stop_after


def test_sayings_are_the_likeliest_tokens_of_each_position():
    exact, data = model(), rows(5)
    for each, said in zip(data, teach.sayings(exact, data, 40, PAD), strict=True):
        ids = torch.tensor(each.ids, dtype=torch.int64)[None]
        with torch.no_grad():
            probabilities_TV = exact(input_ids=ids).logits[0].float().softmax(-1)
        before = torch.tensor(each.mask.nonzero()[0]) - 1
        top = probabilities_TV[before].topk(teach.TOKENS)
        shares = top.values / top.values.sum(1, keepdim=True)
        torch.testing.assert_close(said.weights_NK, shares, **TOLERANCE[torch.float32])
        assert torch.equal(said.ids_NK, top.indices)


def test_a_mixed_batch_learns_labels_here_and_sayings_there():
    exact, data = model(), rows(4)
    batch = collate(data, PAD)
    said = teach.sayings(exact, data, 100, PAD)
    both = teach.mixed(batch, [None, said[1], None, said[3]])
    losses = token_losses(exact, batch, both)
    labels = token_losses(exact, batch)
    own = (batch.row_of_target == 0) | (batch.row_of_target == 2)
    torch.testing.assert_close(losses[own], labels[own], **TOLERANCE[torch.float32])
    alone = token_losses(exact, collate([data[1]], PAD), said[1])
    torch.testing.assert_close(losses[batch.row_of_target == 1], alone, **TOLERANCE[torch.float32])
    assert teach.mixed(batch, [None] * 4) is None


def test_a_stack_moves_less_on_rows_it_is_taught_by_itself(tmp_path):
    """One step apart, the rows' own labels pull further from what the stack said of them."""
    old, exact = [row(16, 50 + i) for i in range(4)], model()
    said = teach.sayings(exact, old, 100, PAD)
    batch = collate(old, PAD)
    before = token_losses(exact, batch, teach.mixed(batch, said)).mean()
    moved = {}
    for how in ("parent", "labels"):
        outcome, _ = run(
            job(tmp_path / how, rehearsal=0.5, rehearse=how, old=old, steps=20, eval_rows=[])
        )
        folded = model()
        for name, factors in outcome.factors.items():
            weight = folded.get_submodule(name).weight
            weight.data += factors.scale * (factors.b_OR @ factors.a_RI)
        moved[how] = float(token_losses(folded, batch, teach.mixed(batch, said)).mean() - before)
    assert moved["parent"] < moved["labels"]


def test_rows_of_its_own_can_teach_what_somebody_else_says(tmp_path):
    """The other is a model that was trained; towards it, not towards the labels, one moves."""
    data, other = rows(4), model()
    taught, _ = run(job(tmp_path / "other", rows=rows(4, seed=9), lr=0.05, steps=10, eval_rows=[]))
    for name, factors in taught.factors.items():
        weight = other.get_submodule(name).weight
        weight.data += factors.scale * (factors.b_OR @ factors.a_RI)
    said, batch = teach.sayings(other, data, 100, PAD), collate(data, PAD)
    how = {"rows": data, "lr": 0.02, "steps": 20, "eval_rows": []}
    away = {}
    for name, theirs in (("said", said), ("labels", None)):
        work = job(tmp_path / name, said=theirs, **how)
        outcome, _ = run(work)
        with attached(work.model, outcome.factors, work.linears), torch.no_grad():
            away[name] = float(token_losses(work.model, batch, teach.mixed(batch, said)).mean())
    before = float(token_losses(model(), batch, teach.mixed(batch, said)).mean())
    assert away["said"] < before < away["labels"]


def test_the_parents_alone_teach_what_the_start_has_spoilt(tmp_path):
    """From factors that do harm, a stack comes nearer to its parents when these teach it."""
    old, exact = [row(16, 50 + i) for i in range(4)], model()
    said = teach.sayings(exact, old, 100, PAD)
    batch = collate(old, PAD)
    harm, _ = run(job(tmp_path / "harm", rows=old, lr=0.05, steps=10, eval_rows=[]))
    apart = {}
    for taught in ("stack", "parents"):
        work = job(
            tmp_path / taught, pools=(Pool(old, 0.5, taught),), start=harm.factors, steps=30,
            eval_rows=[],
        )  # fmt: skip
        outcome, _ = run(work)
        with attached(exact, outcome.factors, families.linears(exact)), torch.no_grad():
            apart[taught] = float(token_losses(exact, batch, teach.mixed(batch, said)).mean())
    assert apart["parents"] < apart["stack"]


def test_two_pools_resume_to_the_bit(tmp_path):
    pools = (Pool(rows(6, seed=40), 0.4, "labels"), Pool(rows(2, seed=60), 0.1, "parents"))
    start = run(job(tmp_path / "start", eval_rows=[]))[0].factors
    whole, _ = run(job(tmp_path / "whole", pools=pools, start=start))
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path / "parts", pools=pools, start=start), stop_after(4))
    again, _ = run(job(tmp_path / "parts", pools=pools, start=start))
    assert raw(whole) == raw(again)


@pytest.mark.parametrize("how", ["parent", "labels"])
def test_rehearsal_resumes_to_the_bit(tmp_path, how):
    fields = {"old": rows(6, seed=40), "rehearsal": 0.4, "rehearse": how}
    whole, _ = run(job(tmp_path / "whole", **fields))
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path / "parts", **fields), stop_after(4))
    shutil.copytree(tmp_path / "parts", tmp_path / "again")
    again, _ = run(job(tmp_path / "again", **fields))
    assert raw(whole) == raw(again)


def test_only_rows_that_are_asked_for_have_something_said_of_them(tmp_path):
    pools = (
        Pool(rows(3, seed=40), 0.4, "labels"),
        Pool(rows(2, seed=50), 0.0, "stack"),
        Pool(rows(4, seed=60), 0.1, "stack"),
    )
    work = job(tmp_path, pools=pools)
    own, groups = len(work.rows), [[0, 1, 2], [3, 5, 8], [6]]
    groups = [[own + i for i in group] for group in groups]
    labels = teach.said_of_old_rows(work, groups, "labels")
    assert labels == dict.fromkeys(range(own, own + 5))
    said = teach.said_of_old_rows(work, groups, "stack")
    assert set(said) == {own + 5, own + 6, own + 8}
    alone = teach.sayings(work.model, [pools[2].rows[1]], 100, PAD)[0]
    assert torch.equal(said[own + 6].weights_NK, alone.weights_NK)
    assert teach.said_of_old_rows(work, groups, "parents") == {}


def test_what_a_time_limit_cut_short_comes_out_again_from_its_resolved_recipe(tmp_path):
    """What the stack says of a row depends, in its last bits, on the rows said with it."""
    old = {"old": rows(60, seed=40), "rehearsal": 0.4, "dtype": "bfloat16"}
    limit = {"steps": None, "epochs": 40, "max_minutes": 1 / 200, "decay": 0.5}
    short, _ = run(job(tmp_path / "short", on=model(dtype=torch.bfloat16), **old, **limit))
    assert short.recipe.steps < 40 * 5
    again, _ = run(
        job(
            tmp_path / "again", on=model(dtype=torch.bfloat16), recipe=short.recipe,
            old=old["old"],
        )
    )  # fmt: skip
    assert raw(again) == raw(short)


def test_old_rows_change_nothing_at_share_zero(tmp_path):
    alone, _ = run(job(tmp_path / "alone"))
    beside, _ = run(job(tmp_path / "beside", old=rows(6, seed=40), rehearsal=0.0))
    assert raw(alone) == raw(beside)


def test_drift_pulls_a_warm_start_back(tmp_path):
    first, _ = run(job(tmp_path / "first", eval_rows=[]))
    free, _ = run(job(tmp_path / "free", start=first.factors, eval_rows=[]))
    held, _ = run(job(tmp_path / "held", start=first.factors, drift=50.0, eval_rows=[]))

    def distance(outcome):
        return sum(
            float((outcome.factors[n].b_OR - f.b_OR).norm()) for n, f in first.factors.items()
        )

    assert distance(held) < 0.7 * distance(free)
