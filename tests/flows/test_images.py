"""A stack that draws, through every verb that a stack that talks goes through."""

import json

import pytest
import torch
from PIL import Image

from lamina.bases.draw import Style, draw
from lamina.core.errors import GateError, TrainInterrupted, UsageError
from lamina.core.manifests import LayerConfig
from lamina.core.recipe import Recipe
from lamina.core.report import Silent
from lamina.flows import examine, learn, merge, rebase, squash, update
from lamina.flows.draw import painter
from lamina.flows.draw import to_file as draw_to
from lamina.flows.painting import job_of, sayings
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from lamina.train.events import EventLog
from lamina.train.loop import train
from tests.flows.world import Said
from tests.pictures import image_store, image_zip, picture, shapes

pytestmark = pytest.mark.slow

QUICK = {"rank": 2, "lr": 1e-2, "steps": 12, "batch_tokens": 512, "held_out": 0.3, "eval_rows": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def store(folder):
    """A base, `night` over it, `dusk` over that, and `noon` over the base."""
    store = image_store(folder / "store")
    trained(store, folder, "night", "pico", shapes(background="black"))
    trained(store, folder, "dusk", "night", shapes(background="gray"), accept_regression="test")
    trained(store, folder, "noon", "pico", shapes(background="yellow"))
    return store


def request(folder, name, on, pictures, **fields):
    recipe = {key: fields.pop(key) for key in tuple(fields) if key in Recipe.model_fields}
    data = image_zip(folder / f"{name}.zip", pictures)
    return learn.Request(on=on, data=[data], name=name, recipe=Recipe(**QUICK | recipe), **fields)


def trained(store, folder, name, on, pictures, **fields):
    run = learn.prepare(store, request(folder, name, on, pictures, **fields), Silent())
    return learn.execute(store, run, Silent())


def said_by(store, stack, dtype=torch.float32):
    return sayings(compile_stack(store, resolve(store, stack), dtype=dtype), ["a red circle", "x"])


def alike(a, b, far=1e-5):
    return all(torch.allclose(x, y, atol=far) for x, y in zip(a, b, strict=True))


def test_a_layer_over_images_learns_and_says_so_by_paired_exams(store):
    found = examine.examine_stack(store, "night", Silent())
    by_name = {result.exam.name: result for result in found.results}
    assert set(by_name) == {"night/denoise", "night/retrieve"}
    denoise = next(c for c in found.comparisons if c.exam == "night/denoise")
    assert denoise.after < denoise.before
    assert denoise.ci[1] < 0
    config = resolve(store, "night").layers[0].config
    assert all(module.startswith("unet.") for module in config.modules)
    assert config.data.format == "images"
    assert config.rehearsal == "sample"


def test_equal_work_gives_an_equal_layer_in_one_sitting_or_two(store, folder):
    asked = request(folder, "night", "pico", shapes(background="black"), again=True)
    run = learn.prepare(store, asked, Silent())
    left = iter([False] * 5)
    with pytest.raises(TrainInterrupted):
        learn.execute(store, run, Silent(), lambda: next(left, True))
    assert (
        learn.execute(store, run, Silent()).layer.digest == resolve(store, "night").layers[0].digest
    )


def test_private_rows_do_not_travel(store, folder):
    with pytest.raises(UsageError, match="writes no rows"):
        trained(store, folder, "x", "pico", shapes(), private=True, rehearsal_set="synthesised")
    made = trained(store, folder, "hidden", "pico", shapes(), private=True)
    titles = [blob.title for blob in store.manifest(made.layer.digest).layers]
    assert titles == ["adapter_config.json", "adapter_model.safetensors"]


def test_text_encoder_layers_are_asked_for(store, folder):
    made = trained(
        store, folder, "worded", "pico", shapes(), targets=("text_encoder", "to_k"), steps=4
    )
    parts = {module.partition(".")[0] for module in made.config.modules}
    assert parts == {"unet", "text_encoder"}


@pytest.mark.parametrize(
    "fields", [{"known": 0.5}, {"checkpointing": True}, {"above": 0.5}, {"targets": ("q_proj2",)}]
)
def test_what_means_nothing_for_images_is_refused(store, folder, fields):
    with pytest.raises(UsageError):
        trained(store, folder, "odd", "pico", shapes(), **fields)


def test_min_snr_is_refused_over_text(tmp_path):
    from tests.flows import world
    from tests.stacks import new_store

    store = new_store(tmp_path / "text")
    data = world.write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match="images"):
        learn.prepare(store, world.request(data, diffusion={"min_snr": 3}), Silent())


def test_words_cannot_be_learned_by_a_base_that_draws(store, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(20)))
    asked = learn.Request(on="pico", data=[str(rows)], name="words", recipe=Recipe(**QUICK))
    with pytest.raises(Exception, match="have no image"):
        learn.execute(store, learn.prepare(store, asked, Silent()), Silent())


def test_a_stack_that_draws_does_not_talk(store):
    with pytest.raises(UsageError, match="draws, it does not talk"):
        _ = compile_stack(store, resolve(store, "night")).format


def test_the_same_seed_draws_the_same_image_alone_or_among_others(store, tmp_path):
    hand = painter(store, "dusk")
    alone = hand.draw(["a red circle"], [3], Style(steps=4))
    among = hand.draw(["a blue line", "a red circle"], [1, 3], Style(steps=4))
    assert len(alone[0]) > 100
    pipeline = compile_stack(store, resolve(store, "dusk"), dtype=torch.float32).pipeline
    one = draw(pipeline, ["a red circle"], [3], Style(steps=4))
    two = draw(pipeline, ["a blue line", "a red circle"], [1, 3], Style(steps=4))
    assert torch.allclose(one[0], two[1], atol=1e-3)
    assert not torch.allclose(two[0], two[1], atol=1e-2)
    assert among[0] != among[1]
    found = draw_to(
        store, "dusk", ["a", "b"], tmp_path / "g.png", Style(steps=2), Silent(), count=3
    )
    assert len(found["images"]) == 6

    with Image.open(tmp_path / "g.png") as image:
        assert image.size == (3 * 18 - 2, 2 * 18 - 2)


def test_an_exact_squash_draws_the_same(store):
    squash.squash(store, "dusk", name="flat", reporter=Silent(), override="test")
    assert len(resolve(store, "flat").layers) == 1
    assert alike(said_by(store, "dusk"), said_by(store, "flat"), 1e-4)


def test_a_merge_is_the_sum(store):
    merge.merge(
        store, ["night", "noon"], method="concat", name="both", reporter=Silent(), override="test"
    )
    (layer,) = resolve(store, "both").layers
    assert layer.config.origin == "merged"


def test_an_update_learns_new_images_over_the_old(store, folder):
    more = [
        (c, picture(c.split()[1], c.split()[2], n, "navy")) for n, (c, _) in enumerate(shapes())
    ]
    data = image_zip(folder / "more.zip", more)
    asked = update.Request("noon", [data], accept_regression="test", overrides=(("steps", 4),))
    run = update.prepare(store, asked, Silent())
    made = learn.execute(store, run, Silent())
    assert made.name.version == 2
    assert made.config.origin == "updated"
    assert update.prepare(store, asked, Silent()) is None  # all of it has been seen


def test_a_layer_is_carried_to_other_parents(store):
    said = Said()
    asked = rebase.Request("dusk", "noon", name="moved", override="test")
    done = rebase.rebase(store, asked, said, lambda: False)
    stack = resolve(store, "moved")
    assert [layer.config.name for layer in stack.layers] == ["noon", "night", "dusk"]
    assert done.layers[0].evidence.rung in ("copy", "retrain")


def test_a_layer_that_harms_is_stopped_at_the_gate(store, folder):
    harm = {"lr": 1.0, "steps": 30, "held_out": 0.0, "rehearsal": 0.0, "protect": 0.0}
    with pytest.raises(GateError, match="significantly worse"):
        trained(store, folder, "harm", "night", shapes(background="yellow"), **harm)


def test_what_lies_beneath_is_folded_and_the_base_stays(store):
    plain = said_by(store, "pico")
    compile_stack(store, resolve(store, "dusk"))
    assert alike(plain, said_by(store, "pico"), 0.0)
    assert not alike(plain, said_by(store, "dusk"))


def test_a_layer_of_images_says_what_it_is(store):
    config = store.config(store.manifest(resolve(store, "night").layers[0].digest), LayerConfig)
    assert {exam.scorer for exam in config.exams} == {"denoise", "retrieve"}


def test_a_run_that_is_stopped_leaves_the_model_as_it_was(store, folder):
    """The next run over the same model would otherwise be asked by the last one's factors."""
    run = learn.prepare(store, request(folder, "cut", "night", shapes()), Silent())
    compiled = compile_stack(store, resolve(store, "night"), dtype=torch.float32)
    before = dict(compiled.pipeline.denoiser.attn_processors)
    said = sayings(compiled, ["a red circle"])
    job, _ = job_of(store, run, run.spec, compiled, Silent())
    calls = iter(range(9))
    with pytest.raises(TrainInterrupted):
        train(job, EventLog(None), lambda: next(calls) > 1)
    after = compiled.pipeline.denoiser.attn_processors
    assert all(after[name] is each for name, each in before.items())
    assert alike(sayings(compiled, ["a red circle"]), said, far=0)
