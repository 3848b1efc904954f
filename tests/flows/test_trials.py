"""What a sweep asks: which combinations, which faults, which trial is best."""

import json
import math

import pytest

from lamina.core.errors import UsageError
from lamina.core.scores import Score
from lamina.flows import runs, trials
from lamina.flows.sweep import Trial, _Teller, in_order

GIVEN = {
    "name": "agent",
    "on": "pico",
    "data": ["rows.jsonl"],
    "recipe": {"epochs": 2},
    "search": {"rank": [2, 4], "lr": {"low": 1e-4, "high": 1e-2}},
}


def read(tmp_path, **changes):
    (tmp_path / "rows.jsonl").touch()
    return trials.read(GIVEN | changes, tmp_path, "agent.toml")


def test_all_combinations_where_they_are_few(tmp_path):
    asked = read(tmp_path, search={"rank": [2, 4, 8], "scaling": ["lora", "rslora"]})
    found = trials.trials_of(asked)
    assert len(found) == 6
    assert {(each["rank"], each["scaling"]) for each in found} == {
        (rank, scaling) for rank in (2, 4, 8) for scaling in ("lora", "rslora")
    }


def test_draws_are_distinct_within_their_range_and_the_same_again(tmp_path):
    asked = read(tmp_path, trials=50)
    found = trials.trials_of(asked)
    assert len({json.dumps(each) for each in found}) == len(found) == 50
    assert all(1e-4 <= each["lr"] <= 1e-2 for each in found)
    assert sum(each["lr"] < 1e-3 for each in found) in range(15, 36)  # each factor as likely
    assert found == trials.trials_of(read(tmp_path, trials=50))
    assert found != trials.trials_of(read(tmp_path, trials=50, seed=1))


def test_a_range_of_whole_numbers_gives_whole_numbers(tmp_path):
    asked = read(tmp_path, search={"rank": {"low": 2, "high": 5, "scale": "linear"}}, trials=4)
    assert sorted(each["rank"] for each in trials.trials_of(asked)) == [2, 3, 4, 5]


def test_a_combination_becomes_a_job_with_the_rest_of_the_recipe(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    asked = read(tmp_path, search={"rank": [2], "data": [["a.jsonl"], ["a.jsonl", "b.jsonl"]]})
    a, b = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    assert trials.mixtures(asked) == [[a], [a, b]]
    job = trials.job_of(asked, {"rank": 2, "data": [a, b]})
    assert (job.recipe.rank, job.recipe.epochs, job.data) == (2, 2.0, (a, b))
    assert "rank" in job.recipe.model_fields_set


@pytest.mark.parametrize(
    ("search", "fault"),
    [
        ({}, "it names nothing to try"),
        ({"rang": [2]}, "search.rang: no key of a recipe"),
        ({"rank": []}, "search.rank: it has no values"),
        ({"rank": [2, 0]}, "greater than or equal to 1"),
        ({"lr": {"low": 0.5, "high": 2.0}}, "less than or equal to 1"),
        ({"lr": {"low": 2e-3, "high": 1e-3}}, "low has to be below high"),
        ({"lr": {"low": 0, "high": 1e-3}}, "above 0"),
        ({"lr": {"low": 1e-4, "top": 1e-3}}, "top"),
        ({"data": ["a.jsonl"]}, "lists of files"),
        ({"data": {"low": 1, "high": 2}}, "lists of files"),
    ],
)
def test_what_cannot_be_tried_is_said(tmp_path, search, fault):
    with pytest.raises(UsageError) as found:
        read(tmp_path, search=search)
    assert fault in found.value.render()


def test_rows_are_needed(tmp_path):
    with pytest.raises(UsageError, match="cannot be used") as found:
        read(tmp_path, data=[])
    assert "no rows to train on" in found.value.render()


def score(exam, value, *, higher):
    return Score(
        exam=f"agent/{exam}", layer="agent", exam_digest="sha256:" + "0" * 64, metric="m",
        value=value, ci=(value, value), n=9, higher_is_better=higher,
    )  # fmt: skip


def trial(number, accuracy, loss, state="landed"):
    scores = (score("loss", loss, higher=False), score("exact", accuracy, higher=True))
    return Trial(number, {}, state, scores=scores)


def test_the_best_is_chosen_by_answers_then_by_loss_among_what_the_gate_lets_pass():
    early = Trial(7, {}, "ended early", percent=10, loss=0.1)
    failed = Trial(8, {}, "failed", fault="no rows")
    given = [early, failed, trial(0, 0.5, 1.0), trial(1, 0.9, 2.0, "refused"), trial(2, 0.7, 3.0),
             trial(3, 0.7, 2.5)]  # fmt: skip
    assert [each.number for each in in_order(given)] == [3, 2, 0, 1, 7, 8]
    assert [each.number for each in in_order(given, "loss")] == [0, 3, 2, 1, 7, 8]


def test_what_was_said_before_is_known_and_not_told_again(tmp_path):
    run = runs.Run(tmp_path)
    said = [
        {"event": "step", "step": 2, "steps": 10, "loss": 2.0},
        {"event": "eval", "step": 2, "loss": 1.5},
    ]
    (tmp_path / runs.EVENTS).write_text("".join(json.dumps(event) + "\n" for event in said))
    told = []
    teller = _Teller(lambda percent, loss: told.append((percent, loss)), run)
    assert (teller.percent, teller.loss, told) == (20, 1.5, [])
    teller.event({"event": "eval", "step": 2, "loss": 1.5})  # as the checkpoint is gone on from
    teller.event({"event": "eval", "step": 5, "loss": 1.0})
    teller.event({"event": "eval", "step": 7, "loss": None})
    assert told == [(50, 1.0), (70, math.inf)]
