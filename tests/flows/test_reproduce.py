"""The same layer again, from what it carries."""

import shutil

import pytest

from lamina.core.errors import CheckError, TrainInterrupted, UsageError
from lamina.flows import runs
from lamina.flows.questions import private_path
from lamina.flows.reproduce import reproduce
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.flows.world import Said, learned, write_rows
from tests.stacks import BASE, put_layer, random_factors


def never() -> bool:
    return False


@pytest.mark.parametrize("name", ["first", "second"])
def test_equal_to_the_byte(store, name):
    found = reproduce(store, name, (), Said(), never)
    assert found.equal
    assert found.layer == resolve(store, name).layers[-1].digest
    assert found.loss == pytest.approx(found.loss_again)
    assert "reproduced" in found.render()
    assert store.verify().clean


def test_the_stack_need_not_be_there_any_more(store, tmp_path):
    """Files given by hand, in another store, under another name of theirs."""
    data = write_rows(tmp_path / "colour.jsonl")
    shutil.rmtree(store.runs_dir)
    with pytest.raises(UsageError, match="not trained on this machine"):
        reproduce(store, "first", (), Said(), never)
    assert reproduce(store, "first", [data], Said(), never).equal


def test_other_data_is_refused(store, tmp_path):
    data = write_rows(tmp_path / "colour.jsonl", count=41)
    with pytest.raises(CheckError, match="not the ones that first learned from") as caught:
        reproduce(store, "first", [data], Said(), never)
    assert any("colour.jsonl" in fault for fault in caught.value.faults)


def test_private_exams_and_time_limits(store, tmp_path):
    done = learned(store, tmp_path, "mine", private=True, max_minutes=0.003, steps=2000)
    assert done.config.recipe.max_minutes is None
    assert reproduce(store, "mine", (), Said(), never).equal
    assert private_path(store, done.config.exams[0].items).exists()


def test_what_cannot_be_reproduced(store):
    with pytest.raises(UsageError, match="is a base"):
        reproduce(store, BASE, (), Said(), never)
    layer = put_layer(store, "imported", random_factors(store), origin="imported")
    with pytest.raises(UsageError, match="imported"):
        reproduce(store, layer.digest, (), Said(), never)


def test_an_interrupted_reproduction_leaves_nothing_to_resume(store):
    before = [run.id for run in runs.all_runs(store)]
    with pytest.raises(TrainInterrupted, match="lamina reproduce first"):
        reproduce(store, "first", (), Said(), lambda: True)
    assert [run.id for run in runs.all_runs(store)] == before
    assert list(store.root.rglob(".tmp-*")) == []
    assert Store.open(store.root).verify().clean
