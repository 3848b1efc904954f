"""Which written rows are kept: readable ones that go somewhere and are nobody's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.data.example import Example, Message, ToolCall
from lamina.data.filters import Forbidden, Said, clean, loops, normal, spoken, telling

PROSE = (
    "The river rises in the northern hills, passes two small towns and a mill that has stood since "
    "the last century, and reaches the sea after about ninety kilometres. In spring the water is "
    "high enough for boats; by August most of them lie on the sand and wait for rain."
)
VOCABULARY = [
    "river",
    "hill",
    "town",
    "mill",
    "sea",
    "boat",
    "sand",
    "rain",
    "spring",
    "water",
    "stone",
    "bridge",
]
sentences = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=30)


def row(question, answer="fine", **fields):
    return Example(
        messages=(
            Message(role="user", content=question),
            Message(role="assistant", content=answer, **fields),
        )
    )


@pytest.mark.parametrize("text", ["What now?", "1 + 1 =", "héllo\n\tthere", "東京は?", "ok 🙂"])
def test_clean(text):
    assert clean(text)


@pytest.mark.parametrize(
    "text", ["", " \n", "?!", "caf\N{REPLACEMENT CHARACTER}", "a\0b", "a\x1b[0m"]
)
def test_not_clean(text):
    assert not clean(text)


@pytest.mark.parametrize(
    "text",
    [
        "ha " * 20,
        "x" * 40,
        "go to the mill and back. " * 6,
        "1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1",
    ],
)
def test_loops(text):
    assert loops(text)


@pytest.mark.parametrize("text", [PROSE, "no no no", "yes", "1 2 3 4 5 6 7 8 9 10 11 12 13 14"])
def test_no_loops(text):
    assert not loops(text)


def test_what_was_said_before():
    said = Said()
    assert said.add("Where does the river rise?")
    assert not said.add("where does the river RISE")
    assert said.add("Where does the river end?")
    assert said.add(PROSE)
    assert not said.add(PROSE + " Nobody minds.")
    assert said.add("Which of the two towns has the mill that has stood since the last century?")


@given(
    st.lists(st.sampled_from(VOCABULARY), min_size=8, max_size=30), sentences, st.integers(0, 22)
)
def test_eight_words_of_a_forbidden_row_are_found_wherever_they_stand(private, written, start):
    piece = private[start : start + 8]
    forbidden = Forbidden([row("q", " ".join(private))])
    text = " ".join([*written, *piece, *written])
    shared = {tuple(private[i : i + 8]) for i in range(len(private) - 7)}
    whole = text.split()
    expected = any(tuple(whole[i : i + 8]) in shared for i in range(len(whole) - 7))
    assert forbidden.repeated_by(row("new", text)) == expected
    assert expected or len(piece) < 8


@given(sentences)
def test_no_row_passes_its_own_screen(private):
    mine = row(" ".join(private))
    assert Forbidden([mine]).repeated_by(mine)
    assert Forbidden([mine]).repeated_by(row(" ".join(private).upper() + "?", "something else"))
    text = Example(text=" ".join(private))
    assert Forbidden([text]).repeated_by(text)


def test_what_a_forbidden_row_does_not_forbid():
    forbidden = Forbidden([row("Which town has the oldest bridge?", "Norby")])
    assert not forbidden.repeated_by(row("Which town has the oldest mill?", "Norby"))
    assert forbidden.repeated_by(row("Please: which town has the oldest bridge, and why?", "Norby"))
    assert not Forbidden([]).repeated_by(row(PROSE, PROSE))


@pytest.mark.parametrize("short", ["Ann moved", "Grüß Gott, Ann", "yes"])
def test_a_short_text_is_found_where_another_starts_with_it(short):
    forbidden = Forbidden([Example(text=short)])
    assert forbidden.repeated_by(Example(text=f"{short.upper()}! and then it rained"))
    assert not forbidden.repeated_by(Example(text=f"then {short}"))
    assert not forbidden.repeated_by(Example(text=f"{short}s"))
    assert not forbidden.repeated_by(row(f"{short} and then?"))


def test_letters_count_where_words_are_few():
    line = (
        "東京の北にある小さな町には、百年前から続く古い水車小屋があり、"
        "春になると川の水が高くなって舟が通る。夏は砂の上で待つ。"
    )
    forbidden = Forbidden([row("問い", line)])
    assert forbidden.repeated_by(row("別の問い", "つまり" + line[3:50]))
    assert not forbidden.repeated_by(row("別の問い", "つまり" + line[3:20]))
    key = "sk" + "".join(chr(97 + i * 7 % 26) for i in range(50))
    assert Forbidden([row(f"the key is {key} and it opens the mill in town")]).repeated_by(
        row("what", f"it is {key[5:48]}")
    )


@pytest.mark.parametrize(
    "word", ["ann@example.org", "4929-1234-5678", "+49301234567", "AB12CD34EF"]
)
def test_words_that_tell_whose_they_are(word):
    assert telling(f"reach me: ({word}).") == {word.casefold()}
    assert Forbidden([row(f"I am {word}, hello")]).repeated_by(row("who", f"it was {word}!"))
    assert not telling("in 2026 about 1,000 boats, 12.5 km")


def test_the_arguments_of_calls_are_spoken():
    call = ToolCall(name="send", arguments='{"to":"ann@example.org","text":"see you at the mill"}')
    mine = row("send it", "", tool_calls=(call,))
    assert call.arguments in list(spoken(mine))
    assert Forbidden([mine]).repeated_by(row("again", "I sent it to ann@example.org"))


def test_normal_forms():
    assert normal("  What's\n THIS?") == normal("what s this") == "what s this"
    assert normal("ﬁve") == "five"
