import pytest

from lamina.core.errors import CorruptBlobError, DataError
from lamina.core.scores import ItemScore
from lamina.data.exams import to_jsonl
from lamina.exams.report import comparisons, score_of
from lamina.exams.runner import run, unexamined
from lamina.exams.tasks import load
from tests.exams.fakes import Parrot, exam_item, exam_of

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
ITEMS = [exam_item(land, city, accept=(city,)) for land, city in CAPITALS.items()]


class Records:
    """A store of results, as flows keep one."""

    def __init__(self):
        self.kept = {}

    def cached(self, exam):
        return self.kept.get(exam.key)

    def record(self, exam, items):
        assert exam.key not in self.kept
        self.kept[exam.key] = items


def sit(exams, examinee, records=None, progress=lambda exam, done, total: None):
    records = records or Records()
    return run(
        exams, lambda: examinee, cached=records.cached, record=records.record, progress=progress
    )


def test_results_come_in_order_with_their_answers():
    exams = [exam_of(ITEMS, "exact"), exam_of(ITEMS, "loss")]
    exact, loss = sit(exams, Parrot({"France": "Paris", "Italy": "Milan"}))
    assert [item.value for item in exact.items] == [1, 0, 0, 0]
    assert exact.items[1].answer == "Milan"
    assert [item.weight for item in loss.items] == [5, 4, 6, 5]
    found = score_of(exact)
    assert (found.value, found.n, found.metric, found.layer) == (0.25, 4, "accuracy", "support")
    assert found.exam_digest == exams[0].spec.items


def test_what_is_on_record_is_not_asked_again_and_nothing_is_loaded_for_it():
    records, exams = Records(), [exam_of(ITEMS, "exact")]
    first = sit(exams, Parrot(CAPITALS), records)

    def load_nothing():
        raise AssertionError("no examinee is needed")

    again = run(
        exams,
        load_nothing,
        cached=records.cached,
        record=records.record,
        progress=lambda exam, done, total: None,
    )
    assert again == first


def test_a_result_is_recorded_before_the_next_exam_starts():
    class Tired(Parrot):
        def log_likelihood(self, examples, progress):
            raise KeyboardInterrupt

    records, exams = Records(), [exam_of(ITEMS, "exact"), exam_of(ITEMS, "loss")]
    with pytest.raises(KeyboardInterrupt):
        sit(exams, Tired(CAPITALS), records)
    assert list(records.kept) == [exams[0].key]


def test_one_exam_in_two_layers_is_asked_once_and_reported_twice():
    examinee = Parrot(CAPITALS)
    exams = [exam_of(ITEMS, "exact", layer="a"), exam_of(ITEMS, "exact", layer="b")]
    results = sit(exams, examinee)
    assert [result.exam.layer for result in results] == ["a", "b"]
    assert examinee.asked == len(ITEMS)


def test_other_questions_scorers_and_lengths_are_other_exams():
    exams = [
        exam_of(ITEMS, "exact"),
        exam_of(ITEMS[:3], "exact"),
        exam_of(ITEMS, "loss"),
        exam_of(ITEMS, "exact", max_new_tokens=99),
    ]
    assert len({exam.key for exam in exams}) == 4
    short, long = (exam_of(ITEMS, "loss", max_new_tokens=n) for n in (1, 128))
    assert short.key == long.key  # nothing is generated


def test_withheld_questions_are_left_out_and_listed():
    public, secret = exam_of(ITEMS, "exact"), exam_of(ITEMS[:2], "exact", private=True)
    assert secret.items is None
    results = sit([public, secret], Parrot())
    assert [result.exam for result in results] == [public]
    assert unexamined([public, secret], results) == (secret,)


def test_withheld_questions_with_a_result_on_record_are_reported():
    records, secret = Records(), exam_of(ITEMS[:2], "exact", private=True)
    records.kept[secret.key] = (ItemScore(value=1), ItemScore(value=0))
    results = sit([secret], Parrot(), records)
    assert score_of(results[0]).value == 0.5
    assert unexamined([secret], results) == ()


def test_a_recorded_result_of_another_length_is_refused():
    records, exam = Records(), exam_of(ITEMS, "exact")
    records.kept[exam.key] = (ItemScore(value=1),)
    with pytest.raises(DataError, match="1 answers to 4 questions"):
        sit([exam], Parrot(), records)


def test_progress_names_the_exam():
    seen = []
    exam = exam_of(ITEMS, "exact")
    sit([exam], Parrot(), progress=lambda *event: seen.append(event))
    assert seen[-1] == (exam, 4, 4)


def test_comparisons_pair_the_exams_that_both_sat():
    shared, new = exam_of(ITEMS, "exact"), exam_of(ITEMS[:2], "exact", name="new")
    before = sit([shared], Parrot(CAPITALS))
    after = sit([new, shared], Parrot({"France": "Paris"}))
    (found,) = comparisons(before, after)
    assert (found.before, found.after, found.delta) == (1.0, 0.25, -0.75)
    assert found.p_worse == 0.125  # three questions lost, none won: 2 ** -3
    assert found.p_better == 1.0
    assert found.exam == "support/exact"


def test_a_loss_that_falls_is_better():
    exam = exam_of(ITEMS, "loss")
    before, after = sit([exam], Parrot()), sit([exam], Parrot(corpus="".join(CAPITALS.values())))
    (found,) = comparisons(before, after)
    assert found.delta < 0
    assert found.p_better < 0.05 < found.p_worse


# -- loading ---------------------------------------------------------------------------------------


def test_questions_come_back_as_they_were_written():
    assert exam_of(ITEMS, "exact").items == tuple(ITEMS)


def test_changed_questions_are_refused():
    exam = exam_of(ITEMS, "exact")
    with pytest.raises(CorruptBlobError, match="do not match their digest"):
        load(exam.spec, "support", to_jsonl(ITEMS).replace(b"Paris", b"Lyons"))


def test_a_wrong_number_of_questions_is_refused():
    exam = exam_of(ITEMS, "exact")
    spec = exam.spec.model_copy(update={"rows": 7})
    with pytest.raises(DataError, match="names 7 questions, but holds 4"):
        load(spec, "support", to_jsonl(ITEMS))
