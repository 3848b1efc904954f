"""Finding the layer that broke an exam: by adding layers, and by leaving each out."""

import json
from dataclasses import replace

import pytest

from lamina.core.errors import CheckError, UsageError
from lamina.core.manifests import StackedLayer
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.flows.bisect import SHOWN, bisect
from lamina.flows.examine import examine_stack
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from lamina.store.refs import ANYTHING
from tests.flows.world import Said, write_rows
from tests.stacks import put_layer, random_factors

pytestmark = pytest.mark.slow  # stacks are trained again and again


def put_over(store, name, on, *, scale, seed=5, grown=1.0, **config):
    """A layer of random factors over a named stack; `name` means the stack."""
    beneath = resolve(store, on, force=True).config
    factors = {
        module: replace(part, b_OR=grown * part.b_OR)
        for module, part in random_factors(store, seed=seed, scale=scale).items()
    }
    layer = put_layer(store, name, factors, beneath.layers, **config)
    stack = store.put_stack(beneath.base, [*beneath.layers, StackedLayer(layer=layer.digest)])
    store.tag(Name(name), stack, expected=ANYTHING)
    return layer.digest


@pytest.fixture
def broken(store):
    """pico < first < second < bad < good: bad destroys what it stands on, good changes little."""
    store.bad = put_over(store, "bad", "second", scale=8.0, author="eve")
    put_over(store, "good", "bad", scale=1e-4, author="ann")
    return store


@pytest.fixture
def compiled(monkeypatch):
    """Digest of every stack that an exam loads."""
    digests = []

    def counting(store, stack, **fields):
        digests.append(stack.digest)
        return compile_stack(store, stack, **fields)

    monkeypatch.setattr("lamina.flows.modality.compile_stack", counting)
    return digests


def test_the_layer_that_broke_an_exam_is_named(broken):
    found = bisect(broken, "good", Silent())
    assert [each.exam.name for each in found.exams] == ["first/loss", "second/loss"]
    for each in found.exams:
        assert each.breaks.layer.digest == each.helps.layer.digest == broken.bad
        assert each.breaks.layer.config.author == "eve"
        assert each.breaks.comparison.ci[0] > 0
        assert each.helps.comparison.ci[1] < 0
        assert each.breaks.adjusted <= 0.05
        assert each.added[3] > each.added[2]
        assert each.without[2] < each.added[4]
    text = found.render()
    assert "made worse by adding bad @" in text
    assert "made better by leaving out bad @" in text
    assert "by eve" in text


def test_the_values_are_those_of_an_exam(broken):
    found = bisect(broken, "good", Silent())
    scores = examine_stack(broken, "bad", Silent()).to_json()["scores"]
    assert [each.added[3] for each in found.exams] == [score["value"] for score in scores]


def test_the_questions_that_lost_most_are_shown_with_both_answers(broken):
    each = bisect(broken, "good", Silent()).exams[0]
    questions = each.breaks.questions
    assert len(questions) == SHOWN <= each.breaks.lost <= each.breaks.comparison.n
    losses = [q.bad_value - q.good_value for q in questions]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0
    assert all(q.text.startswith("which colour has number") for q in questions)
    assert all(q.good and q.bad is not None and q.good != q.bad for q in questions)


def test_flipped_answers_are_shown_as_they_were_given(broken, tmp_path):
    """An exam that is answered: right before, wrong after."""
    rows = []
    for n in range(12):
        asked = [{"role": "user", "content": f"which colour has number {n}?"}]
        rows.append({"messages": asked, "accept": [answer_of(broken, "second", asked)]})
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = bisect(broken, "good", Silent(), wanted=[str(file)]).exams
    each = next(each for each in found if each.exam.name == "own/exact")
    assert each.metric == "accuracy"
    assert each.added[2] == 1.0
    assert each.breaks.layer.digest == broken.bad
    assert each.breaks.lost == 12 * (1 - each.added[3])
    for question, row in zip(each.breaks.questions, rows, strict=False):
        assert (question.good_value, question.bad_value) == (1.0, 0.0)
        assert question.good.strip().startswith(row["accept"][0].strip()[:5])
        assert question.good != question.bad


def answer_of(store, name, messages):
    from lamina.data.example import Message
    from lamina.exams.examinee import Prompt
    from lamina.flows.examinee import StackExaminee
    from lamina.flows.questions import ANSWER_TOKENS

    examinee = StackExaminee(compile_stack(store, resolve(store, name)))
    prompt = Prompt(tuple(Message(**m) for m in messages))
    (answer,) = examinee.answer([prompt], ANSWER_TOKENS["exact"], lambda done, total: None)
    return answer


def test_no_layer_is_named_where_none_did_harm(store):
    found = bisect(store, "second", Silent(), wanted=["second/loss"])
    (each,) = found.exams
    assert each.breaks is None
    assert "no layer made this exam worse" in found.render()


def test_each_stack_is_examined_once_and_then_never_again(broken, compiled):
    found = bisect(broken, "good", Silent())
    layers = 4
    assert found.examined == 2 * layers  # without the last is a prefix
    assert len(compiled) == len(set(compiled)) <= 2 * layers - 2  # training recorded two
    compiled.clear()
    assert bisect(broken, "good", Silent()).to_json() == found.to_json()
    assert compiled == []


def test_progress_says_which_stack(broken):
    said = Said()
    bisect(broken, "good", said)
    texts = [event["text"] for event in said.events]
    assert any("base + first + second + bad on" in text for text in texts)
    assert any("good without first on" in text for text in texts)


def test_an_exam_is_picked_by_name_or_read_from_a_file(store, tmp_path):
    file = write_rows(tmp_path / "own.jsonl", 6, word="river")
    found = bisect(store, "second", Silent(), wanted=["first/loss", file])
    assert [each.exam.name for each in found.exams] == ["first/loss", "own/loss"]
    with pytest.raises(UsageError, match="it carries: first/loss, second/loss") as caught:
        bisect(store, "second", Silent(), wanted=["thrid/loss", "other"])
    assert len(caught.value.faults) == 2


def test_a_base_has_no_layer_to_blame(store):
    with pytest.raises(UsageError, match="has no layers"):
        bisect(store, "pico", Silent())


def test_a_stack_without_an_exam_needs_one(store):
    put_over(store, "alone", "pico", scale=0.1)
    with pytest.raises(UsageError, match="carries no exam"):
        bisect(store, "alone", Silent())


def test_a_layer_that_breaks_the_arithmetic_is_named(store):
    put_over(store, "burst", "second", scale=100.0, grown=1e36, author="eve")
    with pytest.raises(CheckError, match="the layer added last is burst by eve"):
        bisect(store, "burst", Silent())


def test_json_has_its_shape(broken):
    found = bisect(broken, "good", Silent(), wanted=["first/loss"])
    as_json = json.loads(json.dumps(found.to_json()))
    assert set(as_json) == {"stack", "layers", "examined", "exams", "unexamined"}
    assert as_json["layers"][2] == {"layer": broken.bad, "name": "bad", "author": "eve"}
    (each,) = as_json["exams"]
    assert (len(each["added"]), len(each["without"])) == (5, 4)
    assert set(each["breaks"]) == {
        "layer",
        "name",
        "author",
        "comparison",
        "adjusted_p",
        "lost",
        "questions",
    }
    assert set(each["breaks"]["questions"][0]) == {
        "text",
        "good",
        "bad",
        "good_value",
        "bad_value",
    }
