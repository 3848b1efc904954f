"""Runs of several workers with too little memory for the base: whose layer it is does not tell."""

import shutil
from pathlib import Path

import pytest
import torch

from lamina.bases.families import linears
from lamina.bases.load import empty_model
from lamina.core import machine
from lamina.core.errors import UsageError
from lamina.core.recipe import Recipe
from lamina.flows import fitting, holding, job, learn, runs
from lamina.flows.fitting import shapes_of
from lamina.stack.compile import base_directory
from lamina.stack.resolve import of_config
from lamina.store.layout import Store
from tests.flows.world import Said, learned, request, write_rows
from tests.stacks import BASE, new_store
from tests.train.processes import joined

pytestmark = pytest.mark.slow  # processes that are joined

LAYERS = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a base and a layer over it."""
    root = tmp_path_factory.mktemp("holding")
    made = new_store(root / "store", layers=LAYERS)
    learned(made, root, "first", accept_regression="only what comes after is tested")
    return made


@pytest.fixture
def copy(store, tmp_path):
    """Copies of that store, each with a run that is written."""

    def of(name, on="first", **fields):
        root = tmp_path / name
        shutil.copytree(store.root, root, symlinks=True)
        (tmp_path / f"{name}-rows").mkdir()
        data = write_rows(tmp_path / f"{name}-rows" / "rows.jsonl", word="metal")
        run = learn.prepare(
            Store.open(root), request(data, "next", on, dtype="float32", **fields), Said()
        )
        return root, run.id

    return of


def in_crew(rank, root, run_id, free=None, resident=None):
    """What a worker comes to: its layer's digest, and its events; `free`: bytes of a machine."""
    from lamina.bases import load
    from lamina.core import machine
    from lamina.core.report import Silent
    from lamina.flows.job import train_in_crew
    from lamina.train.crew import Group

    if free is not None:
        load.free = lambda: free
    if resident is not None:
        machine.resident = lambda: resident
    store = Store.open(Path(root))
    run = runs.find(store, run_id)
    spec = run.spec
    beneath = of_config(store, spec.stack, label=spec.on, force=spec.force)
    crew = Group()
    assert crew.beside == crew.size
    try:
        made = train_in_crew(store, run, spec, beneath, Silent(), lambda: False, crew)
    except UsageError as error:
        return error.message, [], crew.gathered
    return made and made[0].digest, list(run.events()), crew.gathered


def sizes(store, workers):
    """Bytes of all of the base in float32, and of what a worker has of it where it is shared."""
    model = empty_model(base_directory(store, store.bases()[BASE]))
    shapes = shapes_of(model, Recipe())
    return 4 * shapes.parameters, 4 * holding.shared_parameters(shapes, workers)


def needs(size):
    """Bytes of memory at hand of a machine that two workers share, so that `size` just fits."""
    return int(2 * size / 0.8) + 1000


def test_a_share_is_less_than_all(store):
    whole, share = sizes(store, 2)
    decoder = sum(
        4 * each.weight.numel()
        for each in linears(empty_model(base_directory(store, store.bases()[BASE]))).values()
    )
    assert share == whole - decoder // 2 + holding.GATHERED * decoder // LAYERS
    assert sizes(store, 3)[1] < share < whole


@pytest.mark.parametrize("fields", [{}, {"private": True}], ids=["sampled", "synthesised"])
def test_a_base_that_does_not_fit_is_shared_out(store, copy, fields):
    whole, share = sizes(store, 2)
    given = {}
    for name, free in (("fits", whole), ("shared", share), ("stored", share - 4000)):
        root, run_id = copy(name, **fields)
        given[name] = joined(2, root, in_crew, str(root), run_id, needs(free))
    digests = {name: found[0][0] for name, found in given.items()}
    assert len(set(digests.values())) == 1, digests
    for name, found in given.items():
        assert found[1][0] is None  # worker 0 alone lands it
        shards = [event for event in found[0][1] if event["event"] == "shards"]
        (crew,) = [event for event in found[0][1] if event["event"] == "crew"]
        assert len(shards) == (name == "shared")
        assert bool(crew["gathered_per_step"]) == (name == "shared")
        assert all(bool(each[2]) == (name == "shared") for each in found)


def test_memory_that_is_given_counts(copy, monkeypatch):
    """Where no way fits with all of the base, one with a share of it does."""
    leanest = {"pass_tokens": 32, "checkpointing": True, "held_out": 0.0}
    monkeypatch.setattr(machine, "resident", lambda: 0)
    root, run_id = copy("alone", **leanest)
    store, said = Store.open(root), Said()
    run = runs.find(store, run_id)
    beneath = of_config(store, run.spec.stack, label="first")
    rows = job.rows_of(store, run, run.spec, job.base_format(store, beneath), beneath)
    fitting.fit(store, run, run.spec, beneath, rows, said)
    needed = said.events[-1]["predicted"]

    def trained(name, memory):
        root, run_id = copy(name, memory=memory, **leanest)
        return joined(2, root, in_crew, str(root), run_id, None, 0)[0]

    enough, shared = trained("enough", needed), trained("shared", needed - 1)
    assert enough[0] == shared[0]
    assert not enough[2]
    assert shared[2]
    refused, events, _ = trained("little", 1000)
    assert "at least" in refused
    assert "1 kB is given" in refused
    assert events == []


def test_workers_of_different_means_agree():
    found = {}
    for whole in (0, 1, 2):
        for shared in (0, 1, 2):
            found[whole, shared] = holding.agreed(Others(whole, shared), whole=True, shared=True)
    assert found[0, 0] == found[0, 2] == "whole"
    assert found[1, 0] == found[2, 0] == "shared"
    assert found[1, 1] == found[2, 1] == "stored"


class Others:
    """A crew of which so many others have no room for all, or for a share."""

    rank, size, sent, beside, gathered = 0, 3, 0, 1, 0

    def __init__(self, whole, shared):
        self._missing = torch.tensor([whole, shared])

    def add(self, numbers):
        numbers += self._missing
