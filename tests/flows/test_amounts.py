"""What a run is said to do, beside what the loop then did: steps, tokens, looks, loads."""

from dataclasses import replace

import pytest

from lamina.core.machine import age
from lamina.core.recipe import Recipe
from lamina.data.read import read
from lamina.flows import job, modality, probe
from lamina.flows.amounts import of_training
from lamina.flows.learn import execute, prepare
from lamina.plan.time import amounts, estimate
from lamina.stack import compile as compiling
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from lamina.train import text_lesson
from tests.flows.world import Said, request, write_rows

pytestmark = pytest.mark.slow  # whole verbs, again and again

WAYS = {
    "plain": {"steps": None, "epochs": 2.0, "batch_tokens": 256},
    "steps": {"steps": 7, "batch_tokens": 128, "eval_every": 3},
    "passes": {"steps": 4, "batch_tokens": 512, "pass_tokens": 64},
    "above": {"steps": 4, "batch_tokens": 256, "above": 0.5},
    "no held out rows": {"steps": 3, "held_out": 0.0},
    "labels": {"steps": 3, "rehearse": "labels", "protect": 0.0},
}


def planned(store, asked):
    stack = resolve(store, asked.on)
    return of_training(store, stack, asked, read(asked.data))


@pytest.mark.parametrize("word", ["shape", "colour"], ids=["new", "on record"])
@pytest.mark.parametrize("on", ["pico", "second"])
@pytest.mark.parametrize("way", WAYS)
def test_the_loop_does_what_was_said(store, tmp_path, monkeypatch, way, on, word):
    """Counted at the places where a run's seconds go."""
    asked = request(
        write_rows(tmp_path / "new.jsonl", word=word), "fresh", accept_regression="x", **WAYS[way]
    )
    asked = replace(asked, on=on)
    found = planned(store, asked).run
    passes, looks, loads = [], [], []

    def counted(of, record, measure):
        def call(*given, **more):
            record.append(measure(*given))
            return of(*given, **more)

        return call

    watch = Said()
    monkeypatch.setattr(
        text_lesson, "backward", counted(text_lesson.backward, passes, lambda model, rows, *_: rows)
    )
    monkeypatch.setattr(
        text_lesson,
        "mean_loss",
        counted(text_lesson.mean_loss, looks, lambda model, batches, crew: batches),
    )
    counting = counted(compile_stack, loads, lambda store, stack, **_: bool(stack.layers))
    monkeypatch.setattr(job, "compile_stack", counting)
    monkeypatch.setattr(compiling, "compile_stack", counting)
    monkeypatch.setattr(modality, "compile_stack", counting)
    execute(store, prepare(store, asked, watch), watch)
    assert found.steps == len(passes)
    assert found.learned.tokens == sum(len(row) for rows in passes for row in rows)
    assert found.learned.squares == sum(len(row) ** 2 for rows in passes for row in rows)
    assert found.learned.supervised == sum(int(r.mask[1:].sum()) for rows in passes for r in rows)
    assert found.looked.tokens == sum(int(b.lengths.sum()) for some in looks for b in some)
    assert found.exam_loads == len(loads) - 1
    assert found.exam_folds + found.folds == sum(loads)


def test_a_run_over_layers_says_what_old_rows_cost(store, tmp_path):
    data = write_rows(tmp_path / "new.jsonl")
    over = planned(store, replace(request(data, "x"), on="second")).run
    bare = planned(store, replace(request(data, "x"), on="pico")).run
    assert over.protect
    assert over.guarded.tokens > 0
    assert over.said.tokens > 0
    assert (bare.protect, bare.guarded.tokens, bare.said.tokens) == (False, 0, 0)
    assert over.exam.tokens > bare.exam.tokens
    free = planned(store, replace(request(data, "x", protect=0.0, rehearsal=0.0), on="second")).run
    assert (free.protect, free.guarded.tokens, free.said.tokens) == (False, 0, 0)


def test_a_probe_measures_every_part_that_a_run_has(store, tmp_path):
    stack = resolve(store, "second")
    asked = request(write_rows(tmp_path / "new.jsonl"), "x")
    found = probe.probe(store, stack, asked.recipe, Said(), start=1.0, seconds=1.0)
    run = planned(store, replace(asked, on="second")).run
    for some in amounts(run).values():
        for name, amount in some.items():
            assert not amount or name in found.rates, name
    assert found.rates["start"] == 1.0
    assert found.pulse > 0
    assert estimate(run, found).seconds > 1.0
    probe.keep(store, found)
    assert probe.kept(store, stack, "bfloat16") == found
    assert probe.kept(store, stack, "float32") is None
    assert probe.kept(store, resolve(store, "first"), "bfloat16") == found  # one base


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_probe_out_of_time_ends_in_the_middle_of_a_round(store, monkeypatch, dtype):
    """Each size is met once, then as many again as there is time for: here three passes."""
    done, now = [], [0.0]
    learn, look = probe._learn, probe._look

    def slow(*given):
        learn(*given)
        done.append(1)
        now[0] += 1.0

    def quick(*given):
        look(*given)
        now[0] += 0.001

    monkeypatch.setattr(probe, "_learn", slow)
    monkeypatch.setattr(probe, "_look", quick)
    once = len(probe.SHAPES) + len(probe.AT_OTHER_RANK)
    recipe = Recipe(dtype=dtype)
    found = probe.probe(
        store,
        resolve(store, "first"),
        recipe,
        Said(),
        start=1.0,
        seconds=once + 2.5,
        clock=lambda: now[0],
    )
    assert len(done) == once + 3  # exams look, in whatever they are sat
    seconds = {
        way: sum(rate for name, rate in found.rates.items() if name.startswith(f"{way}: "))
        for way in ("train", "look", "exam")
    }
    assert seconds["train"] > seconds["look"] > 0.0 < seconds["exam"]


def test_a_probe_leaves_the_base_as_it_was(store):
    stack = resolve(store, "pico")
    before = compile_stack(store, stack).model
    compiled = compile_stack(store, stack)
    with probe.few_layers(compiled) as few:
        assert few <= probe.FEW_LAYERS
    names = [name for name, _ in before.named_parameters()]
    assert [name for name, _ in compiled.model.named_parameters()] == names


def test_a_kept_calibration_of_another_form_is_measured_again(store):
    stack = resolve(store, "pico")
    path = probe.path_of(store, probe.key_of(stack, "bfloat16"))
    path.parent.mkdir(parents=True)
    path.write_text('{"key": "x"}')
    assert probe.kept(store, stack, "bfloat16") is None


def test_a_process_knows_its_age():
    assert 0 < age() < 86_400
