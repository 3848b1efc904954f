"""Votes: preference pairs on disk, whole lines only, whoever writes and whatever dies."""

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from lamina.core.errors import UnknownNameError, UsageError
from lamina.flows import votes
from tests.books import Books


@pytest.fixture
def books(tmp_path):
    made = Books(tmp_path / "store")
    one = made.layer("one")
    made.name("one", one)
    made.name("two", one, made.layer("two", [one]))
    return made


def ballot(preferred="left", names=("one", "two"), **fields):
    given = {
        "prompt": [{"role": "user", "content": "why?"}],
        "left": {"stack": names[0], "answer": "because\nit is ✓"},
        "right": {"stack": names[1], "answer": "no"},
        "preferred": preferred,
    }
    return votes.Ballot.parse(given | fields, "the vote")


def rows(store):
    return [json.loads(line) for line in votes.path_of(store).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("preferred", ["left", "right"])
def test_a_vote_is_a_preference_pair(books, preferred):
    votes.cast(books.store, ballot(preferred))
    (row,) = rows(books.store)
    assert row["prompt"] == [{"role": "user", "content": "why?"}]
    better, worse = (
        ("because\nit is ✓", "no") if preferred == "left" else ("no", "because\nit is ✓")
    )
    assert row["chosen"] == [{"role": "assistant", "content": better}]
    assert row["rejected"] == [{"role": "assistant", "content": worse}]
    names = books.store.names()
    chosen, rejected = ("one", "two") if preferred == "left" else ("two", "one")
    assert row["stacks"] == {
        "chosen": {"name": chosen, "digest": names[chosen]["latest"].digest},
        "rejected": {"name": rejected, "digest": names[rejected]["latest"].digest},
    }
    assert row["created"].endswith("+00:00")


def test_what_is_kept_loads_as_preference_data(books, tmp_path):
    """As the library that trains on preferences reads it."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    votes.cast(books.store, ballot())
    votes.cast(books.store, ballot("right"))
    path = str(votes.path_of(books.store))
    found = datasets.load_dataset(
        "json", data_files=path, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(found) == 2
    assert trl.is_conversational(found[0])
    assert {"prompt", "chosen", "rejected"} <= set(found.column_names)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "must end with the user's turn"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "role"),
        ({"right": {"stack": "two", "answer": "because\nit is ✓"}}, "the same"),
        ({"right": {"stack": "two", "answer": ""}}, "answer"),
        ({"preferred": "both"}, "preferred"),
        ({"mood": "good"}, "unknown key"),
    ],
)
def test_what_is_no_preference_is_refused(books, fields, said):
    with pytest.raises(UsageError, match=said):
        votes.cast(books.store, ballot(**fields))
    assert not votes.path_of(books.store).exists()


def test_a_vote_for_a_stack_that_is_not_there_is_refused(books):
    with pytest.raises(UnknownNameError, match="nobody"):
        votes.cast(books.store, ballot(names=("nobody", "two")))
    assert not votes.path_of(books.store).exists()


def test_a_vote_after_a_torn_line_stands_on_its_own_line(books):
    votes.cast(books.store, ballot())
    with votes.path_of(books.store).open("ab") as handle:
        handle.write(b'{"prompt": [{"role": "us')
    votes.cast(books.store, ballot("right"))
    found = votes.votes(books.store)
    assert [vote.stacks.chosen.name for vote in found] == ["one", "two"]
    assert len(votes.path_of(books.store).read_bytes().splitlines()) == 3


def test_votes_at_once_are_all_kept(books):
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda n: votes.cast(books.store, ballot(("left", "right")[n % 2])), range(40))
        )
    assert len(votes.votes(books.store)) == len(rows(books.store)) == 40


FULL = """
    import resource, signal, sys
    from pathlib import Path
    from lamina.core.errors import StoreFullError
    from lamina.core.files import append_line
    path = Path(sys.argv[1])
    append_line(path, b"x" * 50)
    before = path.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        append_line(path, b"y" * 80)
    except StoreFullError:
        assert path.read_bytes() == before
        append_line(path, b"z" * 20)
        assert path.read_bytes() == before + b"z" * 20 + b"\\n"
        print("as it was")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files")
def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path / "lines")],
        capture_output=True,
        text=True,
    )
    assert child.stdout == "as it was\n", child.stderr


def test_the_tally_counts_both_ways(books):
    for preferred in ("left", "left", "right"):
        votes.cast(books.store, ballot(preferred))
    votes.cast(books.store, ballot("right", ("two", "one")))
    votes.cast(books.store, ballot("left", ("pico", "one")))
    assert votes.tally(votes.votes(books.store)) == [
        {"a": "one", "b": "two", "a_wins": 3, "b_wins": 1},
        {"a": "one", "b": "pico", "a_wins": 0, "b_wins": 1},
    ]
