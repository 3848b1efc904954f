"""Results on record, files of questions, comparisons."""

import pytest
import torch

from lamina.core.errors import UnknownNameError
from lamina.data.example import Example, Message
from lamina.flows import examine
from lamina.flows.compare import compare
from lamina.flows.examine import ENGINE, examine_stack, matrix_of
from lamina.flows.examinee import StackExaminee
from lamina.flows.questions import probe_prompts
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from lamina.tokens.batch import collate
from lamina.tokens.mask import encode_all
from lamina.train.objective import token_losses
from tests.flows.world import Said, write_rows


@pytest.fixture
def compiled(monkeypatch):
    """Every stack that an exam loads, by label."""
    labels = []

    def counting(store, stack, **fields):
        labels.append(stack.label)
        return compile_stack(store, stack, **fields)

    monkeypatch.setattr("lamina.flows.modality.compile_stack", counting)
    return labels


def test_what_is_on_record_loads_no_model(store, compiled):
    first = examine_stack(store, "second", Said())
    compiled.clear()
    again = examine_stack(store, "second", Said())
    assert compiled == []
    assert again.results == first.results
    fresh = examine_stack(store, "second", Said(), fresh=True)
    assert len(compiled) == 2  # the stack and its parent
    assert fresh.results == first.results  # and the answers are the same


def test_another_engine_asks_again(store, compiled, monkeypatch):
    examine_stack(store, "second", Said())
    compiled.clear()
    monkeypatch.setattr(
        examine, "ENGINE", ENGINE.replace(ENGINE[-1], "0" if ENGINE[-1] != "0" else "1")
    )
    examine_stack(store, "second", Said())
    assert compiled


def test_against_a_stack_and_with_a_file(store, tmp_path):
    file = write_rows(tmp_path / "own.jsonl", 6, word="river")
    found = examine_stack(store, "second", Said(), against="pico", files=[file])
    assert found.compared_with == resolve(store, "pico").digest
    assert [r.exam.name for r in found.results] == ["first/loss", "second/loss", "own/loss"]
    assert [r.exam.layer for r in found.results][-1] == "-"
    assert len(found.comparisons) == 3
    as_json = found.to_json()
    assert [score["exam"] for score in as_json["scores"]] == [
        "first/loss",
        "second/loss",
        "own/loss",
    ]
    first = as_json["scores"][0]
    assert first["ci"][0] <= first["value"] <= first["ci"][1]
    assert first["n"] == as_json["comparisons"][0]["n"]
    assert "first/loss" in found.render()
    with pytest.raises(UnknownNameError):
        examine_stack(store, "second", Said(), against="nobody")


def test_a_bare_base_has_no_exam(store):
    assert examine_stack(store, "pico", Said()).results == ()


def test_matrix(store):
    stacks = [resolve(store, name) for name in ("pico", "first", "second")]
    found = matrix_of(store, stacks, Said())
    assert found["stacks"] == ["pico", "first", "second"]
    assert found["exams"] == ["first/loss", "second/loss"]
    cells = {(c["stack"], c["exam"]): c for c in found["cells"]}
    assert len(cells) == 6
    assert cells["first", "first/loss"]["change"] == "better"


def test_questions_are_probed_as_they_were_asked(store):
    (messages, tools), *_ = probe_prompts(store, resolve(store, "first"))
    assert [m.role for m in messages] == ["user"]
    assert messages[0].content.startswith("which colour has number")
    assert tools == ()


def test_likelihoods_are_what_training_minimises(store):
    """Row by row, the rows of another length and the lost ones in their places."""
    compiled = compile_stack(store, resolve(store, "first"))
    examples = [
        Example(messages=(Message(role="user", content=q), Message(role="assistant", content=a)))
        for q, a in (
            ("one", "a"),
            ("a far longer question than the others", "bb cc dd"),
            ("x", "y"),
        )
    ]
    lost = Example(messages=(Message(role="user", content="z"),))
    found = StackExaminee(compiled).log_likelihood([*examples[:1], lost, *examples[1:]],
                                                   lambda done, total: None)  # fmt: skip
    assert (found[1].nll, found[1].tokens) == (0.0, 0)
    rows = encode_all(examples, compiled.format, max_length=4096).rows
    for likelihood, row in zip([found[0], *found[2:]], rows, strict=True):
        with torch.inference_mode():
            losses = token_losses(compiled.model, collate([row], compiled.pad_id))
        assert likelihood.tokens == len(losses) == int(row.mask.sum())
        assert likelihood.nll == pytest.approx(float(losses.sum()), rel=2e-2)


# -- diff ------------------------------------------------------------------------------------------


def test_diff(store):
    same = compare(store, "first", "first", ["which colour has number 3?"], 1, Said())
    assert same.answers[0] == same.answers[1]
    assert "(the same)" in same.render()
    found = compare(store, "first", "second", (), 1, Said())
    assert [text.split(" has")[0] for text in found.asked] == ["which colour", "which animal"]
    as_json = found.to_json()
    assert as_json["b"]["layers"][:1] == as_json["a"]["layers"]
    assert len(as_json["answers"]) == 2
    text = found.render()
    assert "= first @" in text
    assert "* second @" in text


def test_what_sat_an_exam_can_still_be_trained_over(store):
    found = compile_stack(store, resolve(store, "second"))
    turns = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    StackExaminee(found).log_likelihood([Example(messages=turns)], lambda done, total: None)
    assert not any(p.is_inference() for p in found.model.parameters())
