"""Updates that are silent on what old rows read."""

import pytest
import torch

from lamina.bases import families
from lamina.core.errors import TrainInterrupted
from lamina.lowrank.inputs import inputs_of
from lamina.tokens.batch import collate
from lamina.train import protect
from lamina.train.objective import predicting
from tests.train.tiny import PAD, job, model, raw, row, run, stop_after

OLD = [row(12, 70 + i) for i in range(3)]
ASKED = {"old": OLD, "rehearsal": 0.2, "eval_rows": []}


def old_inputs():
    exact = model()
    linears = families.linears(exact)
    with inputs_of(linears) as seen, torch.no_grad():
        predicting(exact, collate(OLD, PAD))
    return seen


def protected(energy, batch_tokens=48):
    exact = model()
    linears = families.linears(exact)
    found = protect.directions(exact, linears, OLD, energy, batch_tokens, PAD, 0)
    assert set(found) == set(linears)
    return found


def loudness(outcome):
    """How much the updates say to old inputs, as a share of what their size allows."""
    shares = []
    for name, x in old_inputs().items():
        factors = outcome.factors[name]
        said = (x @ factors.a_RI.T) @ factors.b_OR.T
        size = (factors.b_OR @ factors.a_RI).norm() * x.norm()
        shares.append(float(said.norm() / size.clamp_min(1e-12)))
    return sum(shares) / len(shares)


def test_a_protected_update_is_quieter_on_old_inputs(tmp_path):
    free, _ = run(job(tmp_path / "free", **ASKED))
    held, _ = run(job(tmp_path / "held", protect=0.9, **ASKED))
    assert loudness(held) < 0.8 * loudness(free)


def test_a_stays_at_right_angles_to_the_protected_directions(tmp_path):
    work = job(tmp_path, protect=0.8, **ASKED)
    spans = protected(0.8, work.recipe.batch_tokens)
    outcome, _ = run(work)
    for name, q_IK in spans.items():
        a_RI = outcome.factors[name].a_RI
        assert (a_RI @ q_IK).norm() < 1e-3 * a_RI.norm()


def test_linears_that_read_the_same_share_their_directions():
    spans = protected(0.9)
    q, k = (spans[f"model.layers.0.self_attn.{n}_proj"] for n in ("q", "k"))
    assert torch.equal(q, k)


def test_a_warm_start_keeps_what_it_has(tmp_path):
    first, _ = run(job(tmp_path / "first", eval_rows=[]))
    later, _ = run(job(tmp_path / "later", start=first.factors, protect=0.9, steps=1, **ASKED))
    for name, factors in first.factors.items():
        moved = (later.factors[name].a_RI - factors.a_RI).norm()
        assert moved < 0.5 * factors.a_RI.norm()


def test_it_resumes_to_the_bit(tmp_path):
    whole, _ = run(job(tmp_path / "whole", protect=0.9, **ASKED))
    with pytest.raises(TrainInterrupted):
        run(job(tmp_path / "parts", protect=0.9, **ASKED), stop_after(3))
    again, _ = run(job(tmp_path / "parts", protect=0.9, **ASKED))
    assert raw(whole) == raw(again)
