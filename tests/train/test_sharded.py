"""A base that is shared out over workers: the same bits, a share of the memory, whoever lags."""

import gc
import random
from itertools import groupby

import pytest
import torch

from lamina.bases import families
from lamina.bases.load import load
from lamina.bases.sharded import GATHERED, shards_of
from lamina.bases.turns import NOTHING, Course, Wish, next_of
from lamina.core.errors import TrainInterrupted
from lamina.lowrank.attach import attached, fold_into
from lamina.train.crew import Group
from lamina.train.fused import fuse
from lamina.train.objective import token_losses
from tests.pico import SMALLEST_VOCAB, pico_base
from tests.train import tiny
from tests.train.processes import joined
from tests.train.test_streamed import BATCH, BENEATH, DTYPES, factors_for, model_of

pytestmark = pytest.mark.slow  # processes that are joined


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sharded")
    made = {}

    def of(family="llama", stored=torch.float32, layers=3):
        if (family, stored, layers) not in made:
            made[family, stored, layers] = pico_base(
                root / f"{family}-{stored}-{layers}", family=family, dtype=stored,
                vocab=SMALLEST_VOCAB, hidden=32, layers=layers,
            )  # fmt: skip
        return made[family, stored, layers]

    return of


# -- numbers ---------------------------------------------------------------------------------------


def passes_of(model, *, fuse_it, steps=2):
    """Losses and gradients of some passes, with evaluations in between."""
    found = []
    with attached(model, factors_for(families.linears(model), 5), families.linears(model)) as it:
        subject, why = fuse(model) if fuse_it else (model, "")
        assert subject is not None, why
        for _ in range(steps):
            it.zero_grad()
            losses = token_losses(subject, BATCH)
            losses.mean().backward()
            with torch.inference_mode():
                seen = token_losses(subject, BATCH)
            found += [losses.detach(), it.flat.grad.clone(), seen.clone()]
    return found


def all_passes(rank, cases, directories):
    """For each case, whether all is to the bit as with the base in memory; workers start with
    different cases, so that none is where the others are."""
    found = {}
    for family, stored, dtype, beneath, fuse_it in cases:
        directory = directories[family, stored]
        model = load(directory, dtype=dtype, shards_on="cpu").model
        linears = families.linears(model)
        if beneath:
            fold_into(linears, factors_for(families.select(linears, beneath), 6))
        ours = passes_of(model, fuse_it=fuse_it)
        shards_of(linears.values()).attend()
        whole = model_of(directory, dtype, beneath, stream=False, stored=stored)
        theirs = passes_of(whole, fuse_it=fuse_it)
        key = f"{family} {stored} {dtype} {beneath} {fuse_it}"
        found[key] = all(map(torch.equal, ours, theirs)) and bool(theirs[1].abs().max() > 0)
    return found


KINDS = {
    "llama": list(DTYPES.values()),
    "qwen2": [DTYPES["bfloat16"]],  # with biases
    "qwen3": [DTYPES["float32"]],
}


@pytest.mark.parametrize("size", [2, 3])
def test_losses_and_gradients_are_those_of_weights_in_memory(folder, tmp_path, size):
    cases = [
        (family, stored, dtype, beneath, fuse_it)
        for family, kinds in KINDS.items()
        for stored, dtype in kinds
        for beneath in BENEATH.values()
        for fuse_it in (True, False)
    ]
    directories = {(f, s): folder(f, s) for f, kinds in KINDS.items() for s, _ in kinds}
    for found in joined(size, tmp_path, all_passes, cases, directories):
        assert len(found) == len(cases)
        assert [key for key, same in found.items() if not same] == []


def ragged(rank, directory, size):
    """Passes of which every worker takes another number, some up to the middle only."""
    model = load(directory, dtype=torch.float32, shards_on="cpu").model
    linears = families.linears(model)
    shards, crew = shards_of(linears.values()), Group()
    crew.hold(shards)
    whole = families.linears(load(directory, dtype=torch.float32).model)
    draw, wrong = random.Random(rank), []
    for _ in range(4):
        for _ in range(draw.randrange(4)):
            top = draw.randrange(1, 6)
            for layer in [*range(top), *range(top - 1, -1, -1)]:
                name = f"model.layers.{layer}.mlp.down_proj"
                if not torch.equal(linears[name].weight, whole[name].weight):
                    wrong.append(layer)
        numbers = torch.ones(1)
        crew.add(numbers)
        if numbers != size:
            wrong.append(-1)
    return wrong


@pytest.mark.parametrize("size", [2, 3])
def test_workers_need_not_do_the_same(folder, tmp_path, size):
    assert joined(size, tmp_path, ragged, folder(layers=6), size) == [[]] * size


# -- whole trainings -------------------------------------------------------------------------------

WAYS = {
    "plain": {},
    "more workers than rows in a step": {"batch_tokens": 16, "steps": 4},
    "in passes, computed twice": {"pass_tokens": 20, "checkpointing": True},
    "upper layers only": {"above": 0.5, "epochs": 3.0, "steps": None},
    "modules": {"family": "gemma3_text"},
    "old rows, protected": {"old": tiny.rows(5, seed=70), "rehearsal": 0.4, "protect": 0.7},
    "what is known left out": {"known": 0.5, "steps": None, "epochs": 4.0},
}


def trained(rank, directory, place, changes, sharded, stop=None):
    """A training's factors (None where it was stopped), bytes gathered and events."""
    model = load(directory, dtype=torch.float32, shards_on="cpu" if sharded else None).model
    crew, events = Group(), []
    crew.hold(shards_of(families.linears(model).values()))
    job = tiny.job(place, on=model, **changes)
    asked = (lambda: False) if stop is None else tiny.stop_after(stop)
    try:
        outcome = tiny.train(job, tiny.EventLog(None, events.append), asked, crew)
    except TrainInterrupted:
        return None, crew.gathered, events
    return tiny.raw(outcome), crew.gathered, events


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_training_has_the_factors_of_one_with_the_base_in_memory(folder, tmp_path, way):
    changes = {key: value for key, value in way.items() if key != "family"}
    directory = folder(way.get("family", "llama"))
    size = 2
    shared, whole = (
        joined(size, tmp_path, trained, directory, tmp_path / str(sharded), changes, sharded)
        for sharded in (True, False)
    )
    assert shared[0][0] == whole[0][0]
    assert all(each[0] == shared[0][0] for each in shared)
    assert all(each[1] == 0 for each in whole)
    (crew,) = [event for event in shared[0][2] if event["event"] == "crew"]
    assert crew["gathered_per_step"] > 0


def test_other_workers_go_on_from_a_checkpoint(folder, tmp_path):
    """Three begin; two end it, as two do who began with three's checkpoint and the base whole."""
    import shutil

    there, copied = tmp_path / "there", tmp_path / "copied"
    stopped = joined(3, tmp_path, trained, folder(), there, {}, True, 3)
    assert [each[0] for each in stopped] == [None] * 3
    shutil.copytree(there, copied)
    shared = joined(2, tmp_path, trained, folder(), there, {}, True)
    whole = joined(2, tmp_path, trained, folder(), copied, {}, False)
    assert shared[0][0] == whole[0][0] is not None
    assert next(e["step"] for e in shared[0][2] if e["event"] == "resumed") == 3


# -- memory and wire -------------------------------------------------------------------------------


def in_memory(rank, directory):
    """Bytes of matrices in this process: at rest, and the most seen while a pass goes through."""
    model = load(directory, dtype=torch.float32, shards_on="cpu").model
    linears = families.linears(model)
    shards = shards_of(linears.values())
    shards.fill()
    beside = sum(p.untyped_storage().nbytes() for p in model.parameters())

    def bytes_now():
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
        tensors = [each.to_local() if hasattr(each, "to_local") else each for each in tensors]
        storages = [each.untyped_storage() for each in tensors if each.dtype == torch.float32]
        sizes = {each.data_ptr(): each.nbytes() for each in storages if each.device.type == "cpu"}
        return sum(sizes.values()) - beside

    seen = [bytes_now()]
    for turn in range(2):
        for name in [*linears, *reversed(linears)]:
            linears[name].supplied()
            if turn and name.endswith(("4.mlp.down_proj", "9.mlp.up_proj")):
                seen.append(bytes_now())
    shards.attend()
    return seen[0], max(seen), shards.share_bytes, shards.bytes, shards.gathered


@pytest.mark.parametrize("size", [2, 3])
def test_a_worker_holds_its_share(folder, tmp_path, size):
    layers = 12
    directory = folder(layers=layers)
    linears = families.linears(load(directory, dtype=torch.float32).model)
    decoder = sum(4 * each.weight.numel() for each in linears.values())
    for at_rest, most, share, whole, gathered in joined(size, tmp_path, in_memory, directory):
        assert whole == decoder
        assert share == pytest.approx(decoder / size, rel=0.02)
        assert at_rest <= share * 1.01
        assert share < most <= 1.01 * share + GATHERED * decoder / layers
        turns = 4 * layers - 3  # at the ends of a pass the layer in hand is the next one
        assert gathered == pytest.approx((size - 1) * share * turns / layers, rel=0.15)


def read_by(rank, directory):
    """Bytes of the decoder's weights that this worker read."""
    model = load(directory, dtype=torch.float32, shards_on="cpu").model
    shards = shards_of(families.linears(model).values())
    read, original = [], shards.files.read_into

    def counted(name, out, skipped=0):
        read.append(len(out))
        original(name, out, skipped)

    shards.files.read_into = counted
    shards.fill()
    return sum(read)


def test_a_worker_reads_its_share(folder, tmp_path):
    linears = families.linears(load(folder(), dtype=torch.float32).model)
    decoder = sum(4 * each.weight.numel() for each in linears.values())
    found = joined(3, tmp_path, read_by, folder())
    assert sum(found) == decoder
    assert max(found) == pytest.approx(decoder / 3, rel=0.1)


# -- whose turn it is ------------------------------------------------------------------------------


def test_who_is_behind_comes_first():
    assert next_of([NOTHING, NOTHING]) is None
    assert next_of([NOTHING, Wish(0, 4, 4)]) == 4
    assert next_of([Wish(0, 2, 2), Wish(0, 0, 0)]) == 0
    assert next_of([Wish(0, 9, 1), Wish(0, 4, 4)]) == 4  # on the way down, and still on the way up
    assert next_of([Wish(1, 0, 0), Wish(0, 9, 1)]) == 1


@pytest.mark.parametrize(
    "visits", [[0, 1, 2, 3, 2, 1, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3], [2, 3, 2, 3, 2], [0, 0]]
)
def test_a_course_only_goes_on(visits):
    course, last, places = Course(4), None, []
    for layer in visits:
        if layer != last:
            places.append(course.wish(layer))
            last = layer
    assert places == sorted(places)
    assert len(set(places)) == len(places)
    assert [each.layer for each in places] == [layer for layer, _ in groupby(visits)]


def test_one_that_skips_the_lower_layers_waits_for_one_that_does_not():
    """Turns for one that goes 0 1 2 3 2 and one that goes 2 3 2: no more than the first's own."""
    ways, turns = [[0, 1, 2, 3, 2], [2, 3, 2]], 0
    courses = [Course(4), Course(4)]
    wishes = [course.wish(way.pop(0)) for course, way in zip(courses, ways, strict=True)]
    while (layer := next_of(wishes)) is not None:
        turns += 1
        for worker, wish in enumerate(wishes):
            if wish.layer == layer:
                way = ways[worker]
                wishes[worker] = courses[worker].wish(way.pop(0)) if way else NOTHING
    assert turns == 5
