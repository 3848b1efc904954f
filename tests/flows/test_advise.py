"""Advice: candidates tried in rungs, the smaller of equals, a recipe file that trains."""

import math
import tomllib

import pytest

from lamina.core.errors import DataError, UsageError
from lamina.core.recipe import Recipe
from lamina.core.scores import ItemScore
from lamina.flows import advise as advising
from lamina.flows.advise import Candidate, Tried, _epochs, _reason, _winner, advise
from tests.flows.world import Said, write_rows
from tests.stacks import BASE

pytestmark = pytest.mark.slow  # whole verbs, again and again


def tried(rank, loss, steps=9, lr=5e-4, spread=0.01, targets=("all-linear",)):
    """Twenty judges of ten tokens, around a loss."""
    losses = tuple(
        ItemScore(value=10 * (loss + spread * math.sin(7 * n + rank)), weight=10.0)
        for n in range(20)
    )
    return Tried(Candidate(rank, targets, lr), steps, 1.0, 100 * steps, 1000 * rank, losses)


def test_of_two_that_are_alike_the_smaller_wins():
    assert _winner([tried(64, 1.000), tried(16, 1.001)]).candidate.rank == 16
    assert _winner([tried(64, 1.000), tried(16, 1.2)]).candidate.rank == 64
    assert _winner([tried(16, 1.0), tried(64, 1.1)]).candidate.rank == 16


def test_what_diverged_never_wins():
    lost = Tried(Candidate(4, ("x",), 1.0), 9, 1.0, 9, 1, (ItemScore(value=math.nan),) * 20)
    assert lost.loss == math.inf
    assert _winner([tried(64, 1.0), lost]).candidate.rank == 64
    assert lost.to_json()["loss"] is None


def test_each_value_is_told_where_it_fell_behind():
    rungs = [
        (tried(16, 1.5, 3, spread=0), tried(64, 1.5, 3, spread=0), tried(4, 2.0, 3, spread=0)),
        (tried(16, 1.2, spread=0), tried(64, 1.4, spread=0)),
    ]
    why = _reason(rungs, rungs[1][0], lambda c: c.rank, "rank {}")
    assert why == "rank 64 1.400 to 1.200 after 9 steps; rank 4 2.000 to 1.500 after 3 steps"
    alone = [(tried(16, 1.5),)]
    assert _reason(alone, alone[0][0], lambda c: c.rank, "rank {}") == "the only one tried"


def test_epochs_fit_the_time():
    assert _epochs(10, 5)[0] == 2.0
    assert _epochs(10, 30)[0] == 0.33
    epochs, why = _epochs(100, 1)
    assert epochs == 4
    assert "more than 4 passes" in why


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("advise") / "rows.jsonl", 60)


def test_a_recipe_with_reasons(store, data, monkeypatch, tmp_path):
    monkeypatch.setattr(advising, "LEAST_STEPS", 2)
    said = Said()
    advice = advise(store, [data], BASE, said, minutes=1, probe_minutes=0.001)
    assert [len(rung) for rung in advice.rungs] == [12, 4, 2]
    assert [rung[0].steps for rung in advice.rungs] == [2, 6, 18]
    for rung, above in zip(advice.rungs, advice.rungs[1:], strict=False):
        assert {t.candidate for t in above} == {t.candidate for t in rung[: len(above)]}
    winner = _winner(advice.rungs[-1])
    assert winner.loss < advice.before
    assert set(advice.chosen) == {"rank", "targets", "lr", "epochs"}
    read = Recipe.parse(tomllib.loads(advice.toml()), "the recipe")
    assert (read.rank, read.targets, read.lr) == tuple(winner.candidate)
    assert read.epochs == advice.recipe.epochs
    assert all(f"# {why}" in advice.toml() for _, why in advice.reasons)
    assert "12 candidates" in said.sentences[-1]
    assert f"{advice.before:.3f} before" in advice.render()


def test_the_exams_rows_are_not_looked_at(store, data, monkeypatch):
    seen = []

    def spy(self, compiled, encoded, default, reporter):
        seen.extend(row.example for row in encoded)
        raise KeyboardInterrupt

    monkeypatch.setattr(advising._Bench, "__init__", spy)
    with pytest.raises(KeyboardInterrupt):
        advise(store, [data], BASE, Said(), minutes=1, probe_minutes=0.01)

    from lamina.data.read import read
    from lamina.data.split import split

    parts = split(read([data]).examples, Recipe().held_out, Recipe().held_out_max)
    assert parts.held_out
    assert set(seen) == {example.content_digest() for example in parts.train}


def test_stopped_it_goes_by_what_it_has(store, data, monkeypatch):
    real, calls = advising._Bench.try_out, []

    def stopping(self, candidate, steps):
        calls.append(candidate)
        if len(calls) == 2 + 12 + 2:  # two to take the time, the first rung, half of the second
            raise KeyboardInterrupt
        return real(self, candidate, steps)

    monkeypatch.setattr(advising, "LEAST_STEPS", 2)
    monkeypatch.setattr(advising._Bench, "try_out", stopping)
    said = Said()
    advice = advise(store, [data], BASE, said, minutes=1, probe_minutes=0.001)
    assert [len(rung) for rung in advice.rungs] == [12]
    assert any("rungs that are through: 1 of 3" in text for text in said.sentences)


def test_too_few_rows(store, tmp_path):
    few = write_rows(tmp_path / "few.jsonl", 12)
    with pytest.raises(DataError, match="too few"):
        advise(store, [few], BASE, Said(), minutes=1, probe_minutes=0.01)


def test_rows_that_teach_nothing(store, data, monkeypatch):
    monkeypatch.setattr(advising, "RATES", (1e-12,))
    monkeypatch.setattr(advising, "LEAST_STEPS", 1)
    monkeypatch.setattr(advising._Bench, "loss_before", lambda self: 0.0)
    with pytest.raises(UsageError, match="no candidate lowered"):
        advise(store, [data], BASE, Said(), minutes=1, probe_minutes=0.001)


def test_by_command(shared, data, tmp_path):
    recipe = tmp_path / "recipe.toml"
    options = ("--on", "pico", "--probe-minutes", 0.05, "--minutes", 0.1, "--apply", recipe)
    found = shared("advise", data, *options, "--json").done().json
    assert set(found["recipe"]) == set(found["reasons"])
    assert tomllib.loads(recipe.read_text())["rank"] == found["recipe"]["rank"]
    shared("advise", "nothing.jsonl", "--on", "pico").refused("cannot be read")
