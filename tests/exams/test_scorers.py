import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.errors import CheckError, DataError
from lamina.core.recipe import ScorerName
from lamina.data.example import Example
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Likelihood
from lamina.exams.scorers.exact import normalise
from lamina.exams.scorers.numeric import number_in
from lamina.exams.scorers.registry import SCORERS
from tests.exams.fakes import Parrot, exam_item, user


def score(scorer, items, examinee, max_new_tokens=200):
    return SCORERS[scorer].examine(items, examinee, max_new_tokens, lambda done, total: None)


def values(scorer, items, examinee):
    return [item.value for item in score(scorer, items, examinee)]


def test_every_scorer_that_a_recipe_may_name_exists():
    assert set(SCORERS) == set(ScorerName.__args__)
    assert all(scorer.name == name for name, scorer in SCORERS.items())
    lower = [name for name, scorer in SCORERS.items() if not scorer.higher_is_better]
    assert lower == ["loss", "denoise"]


def test_what_has_nothing_to_be_told_from_makes_no_exam():
    one, same, other = (
        ExamItem(example=Example(text=text, image=image))
        for text, image in (("a cat", "AAAA"), ("a cat", "AAAB"), ("a dog", "AAAC"))
    )
    assert SCORERS["retrieve"].usable([one, same]) == ()
    assert SCORERS["retrieve"].usable([one, same, other]) == (one, same, other)
    assert SCORERS["colour"].usable([one]) == ()
    assert SCORERS["colour"].usable([one, same]) == (one, same)
    assert SCORERS["denoise"].usable([one]) == (one,)
    assert [name for name, each in SCORERS.items() if each.of_images] == [
        "denoise", "retrieve", "colour",
    ]  # fmt: skip


@pytest.mark.parametrize("scorer", ["loss", "exact", "choice"])
def test_progress_reaches_the_end(scorer):
    items = [exam_item(f"{n}", "x", accept=("x",), choices=("x", "y"), right=0) for n in range(3)]
    seen = []
    SCORERS[scorer].examine(items, Parrot(), 8, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# -- loss ------------------------------------------------------------------------------------------


def test_loss_sums_nats_and_counts_tokens():
    examinee = Parrot(corpus="aaab")
    found = score("loss", [exam_item("q", "ab"), exam_item("r", "a")], examinee)
    assert found[0].value == pytest.approx(-math.log(4 / 260) - math.log(2 / 260))
    assert [item.weight for item in found] == [2, 1]
    assert found[0].answer is None


def test_a_question_that_leaves_no_token_does_not_count():
    examinee = Parrot(corpus="aaab")
    found = score("loss", [exam_item("q", "ab"), exam_item("r", "")], examinee)
    assert (found[1].value, found[1].weight) == (0, 0)
    with pytest.raises(DataError, match="none of 1 questions leaves a token"):
        score("loss", [exam_item("r", "")], examinee)


def test_a_loss_that_is_not_finite_is_a_failed_check():
    class Broken(Parrot):
        def _nll(self, text):
            return Likelihood(math.nan, len(text))

    with pytest.raises(CheckError, match="question 1"):
        score("loss", [exam_item("q", "ab")], Broken())


# -- exact -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Paris", 1),
        ("  paris. ", 1),
        ("PARIS\n", 1),
        ("The  city of\tLight", 1),
        ("<think>London? No.</think>Paris", 1),
        ("Paris, France", 0),
        ("Paris..", 0),
        ("Par is", 0),
        ("", 0),
    ],
)
def test_exact_forgives_form_but_not_content(answer, right):
    item = exam_item("capital?", accept=("Paris", "the city of light"))
    assert values("exact", [item], Parrot({"capital?": answer})) == [right]


def test_answers_are_kept_and_cut_at_max_new_tokens():
    item = exam_item("capital?", accept=("Paris",))
    (found,) = score("exact", [item], Parrot({"capital?": "Paris, France"}), max_new_tokens=5)
    assert (found.value, found.answer) == (1, "Paris")


@given(st.text())
def test_normalising_twice_changes_only_further_full_stops(text):
    once = normalise(text)
    assert once == " ".join(once.split())
    assert normalise(once + ".") == once or once.endswith(".") or not once


def test_a_question_without_accepted_answer_is_refused():
    with pytest.raises(DataError, match="question 1: no accepted answer"):
        score("exact", [exam_item("q")], Parrot())


# -- numeric ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("The answer is 42.", 42),
        ("first 1, then 2, so 3", 3),
        ("4 * 5 = 20\n#### 20 apples, not 21", 20),
        ("#### 1 and later #### 7", 7),
        ("#### nothing, but 5 before", 5),
        ("we get 3 ####", 3),
        (r"so \boxed{12} in all 13", 12),
        (r"\boxed{1} then \boxed{\frac{3}{4}} of 9", Fraction(3, 4)),
        (r"\boxed{x = -5}", -5),
        ("1,234.50", Fraction(2469, 2)),
        ("$1,000,000", 1_000_000),
        ("costs €50", 50),
        ("-$5", -5),
        ("$-5", -5),
        ("−7", -7),
        ("10-3", 3),
        ("10–20", 20),
        ("f(x)-3", 3),
        ("x = -3", -3),
        ("+8", 8),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        ("3 / 4", Fraction(3, 4)),
        ("5/0", 5),
        ("50%", 50),
        ("1e3", 1000),
        ("5e-1", Fraction(1, 2)),
        ("**17**", 17),
        ("1,2", 2),
        ("1234,567", 567),
        ("v1.2.3 of H2O", None),
        ("<b>9</b>", 9),
        ("no number", None),
        ("", None),
    ],
)
def test_number_of_an_answer(text, number):
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("so 0.50", "1/2", 1),
        ("0.333", "1/3", 0),
        ("50%", "50", 1),
        ("50%", "0.5", 0),
        ("7", "He has 3 + 4 = 7.\n#### 7", 1),
        ("72.0", "72", 1),
        ("72.0000001", "72", 0),
        ("<think>1, 2, 3</think>4", "4", 1),
        ("none", "4", 0),
    ],
)
def test_numbers_are_compared_exactly(answer, accepted, right):
    item = exam_item("q", accept=(accepted,))
    assert values("numeric", [item], Parrot({"q": answer})) == [right]


def test_an_accepted_answer_without_number_is_refused():
    with pytest.raises(DataError, match="question 2: no number in the accepted answer 'many'"):
        score(
            "numeric", [exam_item("q", accept=("1",)), exam_item("r", accept=("many",))], Parrot()
        )


def test_an_exam_is_made_of_the_questions_that_fit():
    items = [exam_item("q", accept=(text,)) for text in ("#### 3", "many", "4")]
    assert SCORERS["numeric"].usable(items) == (items[0], items[2])


@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_an_integer_is_read(n):
    for text in (
        f"{n}",
        f"{n:,}",
        f"the answer is {n}.",
        f"#### {n}",
        rf"\boxed{{{n}}}",
        f"{n}.00",
    ):
        assert number_in(text) == n


@given(st.text(alphabet="0123456789.,/-+eE$%#{}\\ abcfrox", max_size=80))
def test_no_text_breaks_the_reader(text):
    found = number_in(text)
    assert found is None or isinstance(found, Fraction)


@pytest.mark.parametrize(
    "text", ["9" * 100_000, "1,111" * 20_000, "1e999", "\\frac{" * 9000, "-" * 50_000]
)
def test_hostile_answers_are_read_quickly(text):
    number_in(text)
    assert number_in(text + " 5") == 5


# -- choice ----------------------------------------------------------------------------------------


def test_choice_takes_the_likeliest_per_token_not_in_all():
    examinee = Parrot(corpus="a" * 1000)
    short, long = "b", "a" * 50
    nlls = [likelihood.nll for likelihood in examinee.choice_scores(None, (short, long))]
    assert nlls[0] < nlls[1]  # in all, the long choice would lose
    (found,) = score("choice", [exam_item("q", choices=(short, long), right=1)], examinee)
    assert (found.value, found.answer) == (1, long)


def test_choice_keeps_what_was_chosen():
    item = exam_item("q", choices=("aa", "zz", "aa"), right=1)
    (found,) = score("choice", [item], Parrot(corpus="aaaa"))
    assert (found.value, found.answer) == (0, "aa")


def test_equal_choices_fall_to_the_first():
    (found,) = score("choice", [exam_item("q", choices=("x", "y"), right=0)], Parrot())
    assert found.value == 1


def test_a_right_answer_that_is_no_choice_is_refused():
    with pytest.raises(DataError, match="question 1: right is 2, but there are 2 choices"):
        score("choice", [exam_item("q", choices=("a", "b"), right=2)], Parrot())


def test_a_loss_without_its_row_is_refused():
    with pytest.raises(DataError, match="question 1: no full example"):
        score("loss", [ExamItem(messages=user("q"))], Parrot())


@pytest.mark.parametrize("fields", [{"choices": ("a",), "right": 0}, {}])
def test_too_few_choices_are_refused(fields):
    with pytest.raises(DataError, match="question 1: fewer than two choices"):
        score("choice", [exam_item("q", **fields)], Parrot())
