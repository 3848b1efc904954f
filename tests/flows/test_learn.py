"""From rows to a named stack, on a pico base."""

import hashlib
import json

import pytest

from lamina.core.errors import DataError, GateError, UnknownNameError, UsageError
from lamina.core.evidence import COST_TYPE, NAMING_TYPE, SCORES_TYPE, CostEvidence, NamingEvidence
from lamina.core.names import Name
from lamina.data.exams import from_jsonl
from lamina.data.split import split
from lamina.flows import learn, runs
from lamina.flows.examine import examine_stack
from lamina.flows.inventory import history
from lamina.flows.questions import private_path
from lamina.flows.tag import tag
from lamina.lowrank import codec
from lamina.stack.resolve import resolve
from tests.flows.world import Said, harmful, learned, request, write_rows
from tests.stacks import BASE


def do(store, what):
    """Prepare and execute a request."""
    said = Said()
    return learn.execute(store, learn.prepare(store, what, said), said)


def test_what_a_layer_says_of_itself(store):
    stack = resolve(store, "first")
    (layer,) = stack.layers
    config = layer.config
    assert (config.name, config.author, config.licence) == ("first", "ann", "cc0-1.0")
    assert (config.base, config.parents, config.origin) == (stack.config.base, (), "trained")
    assert (config.rank, config.alpha, config.scaling) == (2, 4.0, "lora")
    assert len(config.modules) == 7
    assert (config.recipe.steps, config.recipe.lr) == (12, 2e-2)
    data = config.data
    assert data.rows + data.held_out_rows == 40
    assert data.held_out_rows >= 5
    assert 0 < data.supervised_tokens < data.tokens
    assert (data.format, data.duplicates, data.skipped, data.overlong) == ("chat", 0, 0, 0)
    (file,) = data.files
    assert (file.name, file.rows) == ("colour.jsonl", 40)
    (exam,) = config.exams
    assert (exam.name, exam.scorer, exam.rows) == ("first/loss", "loss", data.held_out_rows)


def test_the_exam_travels_and_was_not_trained_on(store, tmp_path):
    layer = resolve(store, "first").layers[0]
    items = from_jsonl(store.read(layer.manifest.blob("exam-0.jsonl").digest))
    from lamina.data.read import read

    examples = read([write_rows(tmp_path / "colour.jsonl")]).examples
    parts = split(examples, 0.3, 200)
    assert {item.example.content_digest() for item in items} == {
        row.content_digest() for row in parts.held_out
    }
    carried = {blob.digest for blob in store.manifest(resolve(store, "second").digest).layers}
    assert layer.manifest.blob("exam-0.jsonl").digest in carried  # by whoever stands above, too


def test_evidence(store):
    stack = resolve(store, "first")
    (cost,) = store.evidence(stack.layers[0].digest, COST_TYPE, CostEvidence)
    assert (cost.steps, cost.tokens > 0, cost.seconds > 0) == (12, True, True)
    assert cost.loss_after < cost.loss_before - 0.5  # it learned
    assert cost.layer_bytes < cost.base_bytes
    (naming,) = store.evidence(stack.digest, NAMING_TYPE, NamingEvidence)
    assert (naming.name, naming.version, naming.previous, naming.author) == (
        "first",
        1,
        None,
        "ann",
    )
    assert naming.verdict["passed"]
    assert naming.override is None
    assert store.referrers(stack.digest, SCORES_TYPE)
    assert store.verify().clean


def test_second_over_first(store):
    stack = resolve(store, "second")
    low, high = stack.layers
    assert low.digest == resolve(store, "first").layers[0].digest
    assert [parent.layer for parent in high.config.parents] == [low.digest]
    found = examine_stack(store, "second", Said())
    assert [result.exam.name for result in found.results] == ["first/loss", "second/loss"]
    assert found.compared_with == resolve(store, "first").digest


def test_the_same_request_gives_the_same_layer(store, tmp_path):
    trained = len(runs.all_runs(store))
    one = learned(store, tmp_path, "mine")
    two = learned(store, tmp_path, "mine", again=True)
    assert len(runs.all_runs(store)) == trained + 2  # it was trained twice
    assert one.layer.digest == two.layer.digest
    assert str(one.name) == str(two.name) == "mine:v1"  # nothing moved: it points there already
    other = learned(store, tmp_path, "mine", seed=1)
    assert other.layer.digest != one.layer.digest
    assert str(other.name) == "mine:v2"


def test_training_writes_no_byte_of_what_is_there(store, tmp_path):
    def hashes():
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in store.blobs_dir.iterdir()
        }

    before = hashes()
    learned(store, tmp_path, "mine", on="second", accept_regression="a test")
    after = hashes()
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)


def test_nothing_is_left_over(store, tmp_path):
    done = learned(store, tmp_path, "mine")
    run = runs.all_runs(store)[-1]
    assert {path.name for path in run.directory.iterdir()} <= {
        "run.json",
        "result.json",
        "events.jsonl",
        "lock",
    }
    assert run.result.name == "mine:v1"
    assert {e["event"] for e in run.events()} >= {"step", "eval", "checkpoint", "done"}
    assert not [e for e in store.entries() if e.digest == done.layer.digest]  # the stack keeps it
    assert list(store.root.rglob(".tmp-*")) == []
    with pytest.raises(UsageError, match="finished: mine:v1"):
        runs.to_resume(store, run.id)


def test_targets_scaling_and_further_exams(store, tmp_path):
    questions = [{"prompt": f"say {n}", "completion": str(n), "accept": [str(n)]} for n in range(3)]
    file = tmp_path / "Extra Questions.jsonl"
    file.write_text("".join(json.dumps(q) + "\n" for q in questions))
    done = do(
        store,
        request(
            write_rows(tmp_path / "d.jsonl"),
            targets=("q_proj", "v_proj"),
            scaling="rslora",
            exams=("loss", "exact"),
            exam_files=[str(file)],
            held_out=0.1,
        ),
    )
    assert len(done.config.modules) == 2
    adapter = json.loads(
        store.read(store.manifest(done.layer.digest).blob(codec.CONFIG_FILE).digest)
    )
    assert (adapter["use_rslora"], adapter["target_modules"]) == (True, ["q_proj", "v_proj"])
    names = [exam.name for exam in done.config.exams]
    assert names == [
        "mine/loss",
        "mine/exact",
        "mine.extra-questions/loss",
        "mine.extra-questions/exact",
    ]


# -- what is refused before anything is trained ----------------------------------------------------


def test_names_that_cannot_be_given(store, tmp_path):
    data = write_rows(tmp_path / "d.jsonl")
    for name in (BASE, "mine:v3", "Not a name"):
        with pytest.raises(UsageError):
            learn.prepare(store, request(data, name), Said())
    with pytest.raises(UnknownNameError):
        learn.prepare(store, request(data, on="nobody"), Said())
    assert len(runs.all_runs(store)) == 2


@pytest.mark.parametrize(
    "fields",
    [{"overlong": "refuse", "max_length": 16}, {"targets": ("no_such",)},
     {"overlong": "truncate", "max_length": 16}],
    ids=["refuse", "targets", "nothing-left"],
)  # fmt: skip
def test_a_request_that_cannot_work_leaves_no_run(store, tmp_path, fields):
    data = write_rows(tmp_path / "d.jsonl", word="very long question about a colour")
    before = [run.id for run in runs.all_runs(store)]
    run = learn.prepare(store, request(data, **fields), Said())
    with pytest.raises((DataError, UsageError)):
        learn.execute(store, run, Said())
    assert not run.directory.exists()
    assert [run.id for run in runs.all_runs(store)] == before


def test_bad_rows_are_skipped_aloud(store, tmp_path):
    data = tmp_path / "d.jsonl"
    write_rows(data)
    data.write_text(
        data.read_text() + '{"messages": 3}\n' + data.read_text().splitlines()[0] + "\n"
    )
    with pytest.raises(DataError, match="--skip-bad"):
        learn.prepare(store, request(str(data)), Said())
    said = Said()
    run = learn.prepare(store, request(str(data), skip_bad=True), said)
    assert any("d.jsonl:41" in text for text in said.sentences)
    done = learn.execute(store, run, said)
    assert (done.config.data.skipped, done.config.data.duplicates) == (1, 1)


# -- the gate --------------------------------------------------------------------------------------


def test_the_gate_stops_a_harmful_layer(store, tmp_path):
    first = store.resolve(Name("first")).digest
    run = learn.prepare(store, harmful(tmp_path), Said())
    with pytest.raises(GateError) as caught:
        learn.execute(store, run, Said())
    assert "first/loss" in caught.value.faults[0]
    assert f"--resume {run.id}" in caught.value.hint
    assert "broken" not in store.names()
    assert store.resolve(Name("first")).digest == first
    layer = run.result.layer
    kept = resolve(store, f"@{layer[7:19]}")
    assert f"@{layer[7:19]}" in caught.value.hint  # what the hint says can be typed
    assert [each.digest for each in kept.layers][-1] == layer
    store.collect(grace_seconds=0)  # and it outlives a collection
    assert resolve(store, f"@{layer[7:19]}").digest == run.result.stack
    with pytest.raises(GateError):
        learn.execute(store, run, Said())  # still no


def test_an_override_is_on_record(store, tmp_path):
    run = learn.prepare(store, harmful(tmp_path), Said())
    with pytest.raises(GateError):
        learn.execute(store, run, Said())
    store.collect(grace_seconds=0)
    assert runs.find(store, None).id == run.id
    run.accept_regression("colours are not needed any more")
    done = learn.execute(store, run, Said())
    assert str(done.name) == "broken:v1"
    (move,) = history(store, "broken")
    assert move["override"] == "colours are not needed any more"
    assert move["passed"] is False
    assert store.verify().clean


def test_a_name_that_exists_is_compared_with_what_it_points_at(store, tmp_path):
    """Not over `first`, so nothing is inherited from beneath; but `first` would get worse."""
    with pytest.raises(GateError, match="first/loss"):
        do(store, harmful(tmp_path, name="first", on=BASE))
    better = learned(store, tmp_path, "first", steps=20)
    assert str(better.name) == "first:v2"
    (newest, oldest) = history(store, "first")
    assert (newest["version"], newest["previous"]) == (2, oldest["stack"])
    names = [c.exam for c in better.examination.comparisons]
    assert names.count("first/loss") == 2  # with the base beneath, and with first:v1


def test_tag_goes_through_the_gate_too(store, tmp_path):
    run = learn.prepare(store, harmful(tmp_path), Said())
    with pytest.raises(GateError):
        learn.execute(store, run, Said())
    layer = f"@{run.result.layer[7:19]}"
    store.collect(grace_seconds=0)
    with pytest.raises(GateError, match=layer):
        tag(store, layer, "first", Said(), override=None, author=None)
    moved = tag(store, layer, "first", Said(), override="we want it", author="bob")
    assert moved["name"] == "first:v2"
    move = history(store, "first")[0]
    assert (move["override"], move["author"]) == ("we want it", "bob")
    tag(store, "second", "other", Said(), override="not needed", author=None)
    assert history(store, "other")[0]["override"] is None  # the gate passed by itself


def test_force_is_no_way_around_the_gate(store, tmp_path):
    run = learn.prepare(store, harmful(tmp_path), Said())
    with pytest.raises(GateError):
        learn.execute(store, run, Said())
    layer = f"@{run.result.layer[7:19]}"
    with pytest.raises(GateError):
        tag(store, layer, "first", Said(), override=None, author=None, force=True)


def test_a_forced_stack_says_so(store):
    low, high = resolve(store, "second").config.layers
    swapped = store.put_stack(resolve(store, "second").config.base, [high])
    store.add_root(swapped)
    moved = tag(store, swapped.digest, "swapped", Said(), override=None, author=None, force=True)
    assert moved["name"] == "swapped:v1"
    (move,) = history(store, "swapped")
    assert move["passed"]
    assert move["override"].startswith("--force: ")
    assert low.layer in move["override"]


# -- private exams ---------------------------------------------------------------------------------


def test_private_questions_stay_here(store, tmp_path):
    data = write_rows(tmp_path / "secret.jsonl", word="passphrase")
    done = do(store, request(data, "guarded", private=True))
    (exam,) = done.config.exams
    assert exam.private
    assert store.manifest(done.layer.digest).blob("exam-0.jsonl") is None
    for path in store.blobs_dir.iterdir():
        assert b"passphrase has number" not in path.read_bytes()
    for path in (store.root / "runs").rglob("*"):
        assert path.is_dir() or b"passphrase has number" not in path.read_bytes()
    found = examine_stack(store, "guarded", Said(), fresh=True)  # here they are at hand
    assert [result.exam.name for result in found.results] == ["guarded/loss"]

    learned(store, tmp_path, "above", on="guarded", word="tool")
    private_path(store, exam.items).unlink()
    again = examine_stack(store, "above", Said())  # on record, without the questions
    assert {result.exam.name for result in again.results} == {"guarded/loss", "above/loss"}
    higher = learned(store, tmp_path, "higher", on="above", word="river")
    (missing,) = higher.examination.verdict.unexamined
    assert (missing.exam, missing.layer) == ("guarded/loss", "guarded")
    assert higher.examination.verdict.passed
    assert "guarded/loss" in higher.examination.render()
