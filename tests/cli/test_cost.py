"""`lamina cost` as it is typed: what a lineage took, and what else it would have cost."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from lamina.core.evidence import COST_TYPE, SCORES_TYPE, CostEvidence, ScoresEvidence
from lamina.flows import descent
from lamina.flows.cost_plot import plot
from lamina.flows.spending import spending
from lamina.plan.laws import APPROACH_1
from lamina.plan.work import architecture
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.cli.program import config_of
from tests.made import QUICK, write_rows
from tests.test_architecture import HEAVY, RUN, loaded

PRICES = """
currency = "EUR"
[hardware.this]
title = "a machine"
price_per_hour = 3.6
price_per_kwh = 0.25
watts = {watts}
"""
SVG = "{http://www.w3.org/2000/svg}"


def write_prices(program, watts=100.0):
    folder = config_of(program.home)
    folder.mkdir(exist_ok=True)
    (folder / "hardware.toml").write_text(PRICES.format(watts=watts))


def costs(program, name):
    store = Store.open(program.home, create=False)
    return [
        store.evidence(layer.digest, COST_TYPE, CostEvidence)[-1]
        for layer in resolve(store, name, force=True).layers
    ]


def shapes(store, stack):
    blob = store.manifest(stack.base.digest).blob("config.json")
    return architecture(json.loads(store.read(blob.digest)))


def test_a_training_records_what_it_did(made):
    store = Store.open(made, create=False)
    stack = resolve(store, "sums")
    (cost,) = store.evidence(stack.layers[0].digest, COST_TYPE, CostEvidence)
    data, model = stack.layers[0].config.data, shapes(store, stack)
    assert cost.tokens == data.tokens  # one pass
    assert cost.supervised_tokens == data.supervised_tokens
    steps = 4 * (model.linears * cost.tokens + model.embedding * cost.supervised_tokens)
    looked = cost.flops - steps  # forward passes over the held-out rows: before, after, between
    assert looked > 0
    assert looked < 2 * steps
    assert (cost.joules is None) == ("no counter" in cost.metered or "cannot" in cost.metered)
    assert (cost.money, cost.rates, cost.estimated_joules) == (None, None, None)
    assert cost.hardware.endswith("1 threads")
    sat = store.evidence(stack.digest, SCORES_TYPE, ScoresEvidence)
    assert all(record.seconds > 0 for record in sat)


def test_a_lineage_and_what_else_it_could_have_been(shared):
    found = shared("cost", "times", "--json").done().json
    recorded = costs(shared, "times")
    assert [layer["name"] for layer in found["layers"]] == ["sums", "times"]
    assert found["totals"]["seconds"] == pytest.approx(sum(c.seconds for c in recorded))
    assert found["totals"]["flops"] == pytest.approx(sum(c.flops for c in recorded))
    assert found["totals"]["without_cost"] == 0
    by = {each["author"]: each["seconds"] for each in found["authors"]}
    assert by == {"Zoë": recorded[0].seconds, None: recorded[1].seconds}
    store = Store.open(shared.home, create=False)
    stack = resolve(store, "times")
    model = shapes(store, stack)
    full = [
        6 * (model.linears * c.tokens + model.embedding * c.supervised_tokens) for c in recorded
    ]
    assert found["full_fine_tuning"]["flops"] == pytest.approx(sum(full))
    wanted = sum(f / c.flops * c.seconds for f, c in zip(full, recorded, strict=True))
    assert found["full_fine_tuning"]["seconds"] == pytest.approx(wanted)
    best = APPROACH_1.optimal_for(stack.base_config.parameters)
    rate = sum(c.flops for c in recorded) / sum(c.seconds for c in recorded)
    assert found["from_scratch"]["flops"] == pytest.approx(best.flops)
    assert found["from_scratch"]["seconds"] == pytest.approx(best.flops / rate)
    assert found["exams"]["sittings"] > 0
    assert found["exams"]["unknown"] == 0
    assert found["exams"]["seconds"] > 0
    text = shared("cost", "times").done().out
    assert text.startswith("times:v1 has cost ")
    assert found["sentence"] in text
    for line in found["assumptions"]:
        assert line in text
    assert "No prices were configured" in text


def test_money_is_what_was_configured_then(program, rows):
    write_prices(program)
    options = ("--on", "pico", "--as", "priced", "--author", "Ann", "--scorer", "loss", *QUICK)
    program("train", "--data", rows, *options).done()
    (cost,) = costs(program, "priced")
    assert cost.rates.currency == "EUR"
    assert cost.estimated_joules == pytest.approx(100 * cost.seconds)
    energy = cost.estimated_joules if cost.joules is None else cost.joules
    wanted = 3.6 * cost.seconds / 3600 + 0.25 * energy / 3.6e6
    assert cost.money == pytest.approx(wanted)
    write_prices(program, watts=999.0)
    found = program("cost", "priced", "--json").done().json
    assert found["totals"]["money"] == {"EUR": pytest.approx(wanted)}
    assert found["authors"] == [
        {"author": "Ann", "layers": 1, "seconds": cost.seconds, "money": pytest.approx(wanted)}
    ]
    ratio = found["from_scratch"]["seconds"] / cost.seconds
    assert found["from_scratch"]["money"] == pytest.approx(wanted * ratio)
    assert "EUR so far" in found["sentence"]
    assert "an estimate" in " ".join(found["assumptions"]) or cost.joules is not None


def test_prices_never_decide_a_layer(program, rows):
    options = ("--on", "pico", "--data", rows, "--scorer", "loss", *QUICK)
    first = program("train", *options, "--as", "one", "--json").done().json
    write_prices(program)
    same = program("train", *options, "--as", "one", "--json").done()
    assert "nothing changed" in same.err
    again = program("train", *options, "--as", "one", "--again", "--json").done().json
    assert again["layer"] == first["layer"]
    assert len(costs(program, "one")) == 1


def test_a_misspelt_price_is_refused_before_training(program, rows):
    config_of(program.home).mkdir(exist_ok=True)
    (config_of(program.home) / "hardware.toml").write_text("[hardware.this]\nprice_an_hour = 1\n")
    options = ("--on", "pico", "--data", rows, "--as", "one")
    program("train", *options).refused("price_an_hour", "unknown key")


def test_older_versions_and_what_the_gate_refused_are_counted(program, tmp_path):
    new = write_rows(tmp_path / "new.jsonl", "times", 30)
    options = ("--on", "sums", "--as", "times", "--scorer", "loss", *QUICK)
    program("train", *options, "--data", new).refused("was not moved", code=1)
    found = program("cost", "times", "--json").done().json
    standing = [(layer["name"], layer["standing"]) for layer in found["layers"]]
    assert sorted(standing) == [
        ("sums", "in the stack"), ("times", "in the stack"), ("times", "unnamed"),
    ]  # fmt: skip
    assert any("no name holds" in line for line in found["assumptions"])
    other = write_rows(tmp_path / "other.jsonl", "less", 20)
    program("update", "times", "--data", other, "--accept-regression", "a test").done()
    found = program("cost", "times", "--json").done().json
    mine = {layer["standing"]: layer for layer in found["layers"] if layer["name"] == "times"}
    assert set(mine) == {"in the stack", "older", "unnamed"}
    newest, oldest = mine["in the stack"], mine["older"]
    assert newest["full_flops"] > oldest["full_flops"]  # all over again, with the new rows
    old = program("cost", "times:v1", "--json").done().json
    assert newest["layer"] not in [layer["layer"] for layer in old["layers"]]
    assert oldest["layer"] in [layer["layer"] for layer in old["layers"]]


def test_a_cost_from_before_is_read_and_what_it_lacks_is_said(program):
    store = Store.open(program.home, create=False)
    layer = resolve(store, "sums").layers[0]
    cost = store.evidence(layer.digest, COST_TYPE, CostEvidence)[-1]
    new = {
        "supervised_tokens", "flops", "joules", "metered", "estimated_joules", "money", "rates",
    }  # fmt: skip
    old = CostEvidence.parse(
        {k: v for k, v in json.loads(cost.to_bytes()).items() if k not in new}, "old evidence"
    )
    assert not new & json.loads(old.to_bytes()).keys()  # and is written as it was
    store.put_evidence(COST_TYPE, old, store.describe(layer.digest))
    found = program("cost", "sums", "--json").done().json
    assert found["layers"][0]["reckoned"]
    model = shapes(store, resolve(store, "sums"))
    wanted = 4 * (model.linears * cost.tokens + model.embedding * cost.supervised_tokens)
    assert found["layers"][0]["flops"] == pytest.approx(wanted)
    assert any("worked out" in line for line in found["assumptions"])


def test_a_layer_without_a_cost_is_said_so(program):
    program("squash", "times", "--as", "flat", "--accept-regression", "a test").done()
    found = program("cost", "flat", "--json").done().json
    flat = next(layer for layer in found["layers"] if layer["origin"] == "squashed")
    assert flat["seconds"] > 0  # of its certificate
    assert flat["full_flops"] is None
    assert {layer["name"] for layer in found["layers"]} >= {"sums", "times"}  # its sources
    assert descent.version(Store.open(program.home, create=False), flat["layer"]) is not None


# -- what more rows bring --------------------------------------------------------------------------


@pytest.fixture
def shares(program, tmp_path):
    """Trains `share` on so many rows, with questions that stay the same."""
    lines = write_rows(tmp_path / "all.jsonl", "plus", 120).read_text().splitlines(keepends=True)
    exam = tmp_path / "held.jsonl"
    exam.write_text("".join(lines[80:]))

    def train(count, *more):
        part = tmp_path / f"part-{count}.jsonl"
        part.write_text("".join(lines[:count]))
        options = (*QUICK, "--batch-tokens", 128, "--epochs", 2, "--scorer", "loss", *more)
        given = ("--exam", exam, "--accept-regression", "a test")
        return program("train", "--on", "pico", "--data", part, "--as", "share", *options, *given)

    return train


@pytest.mark.slow
def test_more_rows_are_priced_by_the_names_own_versions(program, shares):
    for count in (10, 20):
        shares(count).done()
    program("cost", "share", "--rows", "20").refused(
        "3 trainings", "share:v1", "share:v2", "--exam"
    )
    shares(40).done()
    shares(30, "--lr", "0.003").done()
    found = program("cost", "share:v3", "--rows", "20", "--json").done().json["more_rows"]
    assert [point["version"] for point in found["points"]] == ["share:v1", "share:v2", "share:v3"]
    losses = [point["loss"] for point in found["points"]]
    assert losses == sorted(losses, reverse=True)
    assert found["questions"] >= 40
    assert 0 <= found["ci"][0] <= found["lowers_loss_by"] <= found["ci"][1]
    text = program("cost", "share:v3", "--rows", "20").done().out
    assert "20 more rows should lower the held-out loss by" in text
    assert " ± " in text
    # the newest has another recipe: the three before it are then no points
    program("cost", "share", "--rows", "20").refused("another recipe: lr")


def test_a_name_without_versions_to_compare_is_refused(shared):
    shared("cost", "times", "--rows", "100").refused("3 trainings", "times:v1")
    shared("cost", "times", "--rows", "0").refused("--rows")


# -- the picture -----------------------------------------------------------------------------------


def test_the_plot_stands_by_itself_and_says_what_it_shows(shared, tmp_path):
    file = tmp_path / "times.svg"
    said = shared("cost", "times", "--plot", file).done().out
    assert f"drawn: {file}" in said
    root = ElementTree.parse(file).getroot()
    assert root.attrib["role"] == "img"
    title, desc = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.attrib["aria-labelledby"] == f"{title.attrib['id']} {desc.attrib['id']}"
    assert title.text == "What times:v1 has cost"
    assert shared("cost", "times", "--json").json["sentence"] in desc.text
    assert len(root.findall(f"{SVG}path[@class='line ours']")) == 1
    assert len(root.findall(f"{SVG}path[@class='line full']")) == 1
    assert len(root.findall(f"{SVG}path[@class='line scratch']")) == 1
    assert "prefers-color-scheme: dark" in root.find(f"{SVG}style").text
    text = file.read_text()
    for never in ("<script", "href", "url(", "@import", "<image", "foreignObject"):
        assert never not in text


def test_a_strangers_name_is_text_in_the_picture(made):
    spent = spending(Store.open(made, create=False), "times")
    hostile = type(spent)(**{**vars(spent), "label": '</title><script>alert(1)</script>&"\x1b[31m'})
    drawn = plot(hostile)
    assert "<script" not in drawn
    assert "\x1b" not in drawn
    assert ElementTree.fromstring(drawn).find(f"{SVG}title").text.startswith("What </title>")


def test_a_lineage_without_costs_is_drawn_too(made):
    spent = spending(Store.open(made, create=False), "times")
    bare = type(spent)(**{**vars(spent), "items": (), "full": None, "scratch": None})
    assert "no cost is on record" in plot(bare)
    ElementTree.fromstring(plot(bare))


# -- reading ---------------------------------------------------------------------------------------


def test_what_cannot_be_found_is_refused(shared):
    shared("cost", "tmies").refused("tmies")
    shared("cost", "pico").refused("bare base")


def test_reading_costs_loads_nothing_heavy(made):
    assert loaded(RUN.format(arguments=["cost", "times"]), made) & HEAVY == set()
