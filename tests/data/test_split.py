import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.data.example import Example
from lamina.data.provenance import content_digest
from lamina.data.split import split
from tests.data.rows import example

questions = st.sampled_from([f"q{number}" for number in range(12)])
answers = st.sampled_from("abc")


@st.composite
def conversations(draw):
    """Conversations of one to three turns that often start alike; sometimes plain text."""
    if draw(st.integers(0, 9)) == 0:
        return Example(text=draw(questions))
    turns = draw(st.lists(st.tuples(questions, answers), min_size=1, max_size=3))
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    return Example.from_json({"messages": messages})


row_lists = st.lists(conversations(), max_size=40, unique=True)
shares = st.floats(0, 0.95)


def supervised_questions(rows):
    """Everything that stands before an answer of these rows, or is a text."""
    return {
        row.messages[:i] if row.text is None else row.text
        for row in rows
        for i, message in enumerate(row.messages or [None])
        if message is None or message.role == "assistant"
    }


def many(count, prefix="q"):
    return [example(f"{prefix}{number}", "a") for number in range(count)]


@given(row_lists, shares, st.integers(1, 5))
def test_every_row_is_on_one_side(rows, share, cap):
    parts = split(rows, share, cap)
    sides = [*parts.train, *parts.held_out, *parts.unused]
    assert len(sides) == len(rows)
    assert set(sides) == set(rows)
    assert len(parts.held_out) <= cap
    assert list(parts.train) == [row for row in rows if row in set(parts.train)]


@given(row_lists, shares, st.integers(1, 5))
def test_no_question_of_any_turn_is_both_trained_on_and_held_out(rows, share, cap):
    parts = split(rows, share, cap)
    if len({row.opening or row.text for row in rows}) > 1:
        out = supervised_questions([*parts.held_out, *parts.unused])
        assert not supervised_questions(parts.train) & out


@given(row_lists, shares, st.randoms())
def test_the_order_of_rows_does_not_matter(rows, share, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = split(rows, share, 3), split(shuffled, share, 3)
    assert one.held_out == other.held_out
    assert content_digest(one.train) == content_digest(other.train)


@given(st.integers(0, 200), st.integers(0, 200))
def test_rows_keep_their_sides_when_others_are_added(before, added):
    old = many(100 + before)
    one = split(old, 0.2, 10)
    two = split(old + many(added, prefix="new"), 0.2, 10)
    assert set(one.train) <= set(two.train)
    kept_out = set(two.held_out) | set(two.unused)
    assert set(one.held_out) | set(one.unused) <= kept_out


def test_the_share_is_about_the_one_asked_for():
    parts = split(many(4000), 0.1, 10_000)
    assert 330 < len(parts.held_out) < 470
    assert parts.unused == ()


def test_rows_beyond_the_cap_are_neither_trained_on_nor_asked():
    whole = split(many(400), 0.25, 1000)
    capped = split(many(400), 0.25, 7)
    assert capped.train == whole.train
    assert capped.held_out == whole.held_out[:7]
    assert capped.unused == whole.held_out[7:]


def test_small_sets_hold_out_one_question_and_train_on_one():
    assert split([], 0.5, 9).train == ()
    (only,) = many(1)
    assert split([only], 0.5, 9).train == (only,)
    for share in (1e-9, 0.999999):
        parts = split(many(2), share, 9)
        assert len(parts.train) == len(parts.held_out) == 1
    assert split(many(50), 0, 9).held_out == ()


def test_where_all_rows_start_alike_the_whole_prompt_decides():
    def row(number):
        turns = [("user", "Hi"), ("assistant", "Hello"), ("user", f"q{number}")]
        turns.append(("assistant", "a"))
        return Example.from_json({"messages": [{"role": r, "content": c} for r, c in turns]})

    parts = split([row(number) for number in range(200)], 0.2, 100)
    assert 20 < len(parts.held_out) < 60


def test_the_same_question_with_another_answer_stays_on_its_side():
    rows = [example(f"q{number}", answer) for number in range(100) for answer in "ab"]
    parts = split(rows, 0.3, 1000)
    assert len(parts.held_out) % 2 == 0
    assert not {row.prompt for row in parts.train} & {row.prompt for row in parts.held_out}


@pytest.mark.parametrize(("share", "cap"), [(-0.1, 5), (1.0, 5), (0.1, 0)])
def test_impossible_shares_are_refused(share, cap):
    with pytest.raises(ValueError, match="held_out must be"):
        split(many(3), share, cap)


def test_the_content_digest_changes_with_every_row():
    rows = many(5)
    assert content_digest(rows) == content_digest(rows[::-1])
    assert (
        len({content_digest(rows), content_digest(rows[1:]), content_digest([*rows, rows[0]])}) == 3
    )
