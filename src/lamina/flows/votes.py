"""Votes between two stacks' answers, kept as preference pairs: rows to train on later.

`<store>/votes.jsonl`, one JSON object a line, in the conversational form of preference data::

    {"prompt": [{"role": "user", "content": …}], "chosen": [{"role": "assistant", "content": …}],
     "rejected": [{…}], "stacks": {"chosen": {"name", "digest"}, "rejected": {…}}, "created": …}

The file is the user's: it stays on this machine, belongs to no layer and is never collected.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lamina.core.digest import Digest
from lamina.core.errors import UsageError
from lamina.core.files import append_line, locked
from lamina.core.values import Value
from lamina.flows.runs import now
from lamina.stack.resolve import resolve
from lamina.store.layout import Store

FILE, LOCK = "votes.jsonl", "votes.lock"
MOST_CHARACTERS = 200_000
"""Longest message, in characters."""
MOST_MESSAGES = 400

Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Turn(Value):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Side(Value):
    """What one stack answered."""

    stack: Annotated[str, Field(max_length=300)]
    """A name or @digest, as in the request that it answered."""
    answer: Annotated[Text, Field(min_length=1)]


class Ballot(Value):
    """Two answers to one conversation, and which is better."""

    prompt: Annotated[tuple[Turn, ...], Field(min_length=1, max_length=MOST_MESSAGES)]
    left: Side
    right: Side
    preferred: Literal["left", "right"]


class Answered(Value):
    """Who answered."""

    name: str
    digest: Digest
    """Of the stack that the name meant when the vote was cast."""


class Stacks(Value):
    """Who gave which answer."""

    chosen: Answered
    rejected: Answered


class Vote(Value):
    """A preference pair, as it is kept."""

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    stacks: Stacks
    created: str
    """ISO 8601, UTC."""


def path_of(store: Store) -> Path:
    """Where votes are kept."""
    return store.root / FILE


def cast(store: Store, ballot: Ballot) -> Vote:
    """Keep a vote.

    Raises UsageError where there is nothing to prefer, UnknownNameError, StoreBusyError,
    StoreFullError, ReadOnlyStoreError.
    """
    if ballot.prompt[-1].role != "user":
        raise UsageError("a vote is about an answer: the prompt must end with the user's turn")
    if ballot.left.answer == ballot.right.answer:
        raise UsageError("both answers are the same: there is nothing to prefer")
    sides = (ballot.left, ballot.right)
    better, worse = sides if ballot.preferred == "left" else sides[::-1]
    vote = Vote(
        prompt=ballot.prompt,
        chosen=(Turn(role="assistant", content=better.answer),),
        rejected=(Turn(role="assistant", content=worse.answer),),
        stacks=Stacks(chosen=_answered(store, better), rejected=_answered(store, worse)),
        created=now().isoformat(),
    )
    line = json.dumps(vote.model_dump(mode="json"), ensure_ascii=False)
    with locked(store.root / LOCK):
        append_line(path_of(store), line.encode())
    return vote


def _answered(store: Store, side: Side) -> Answered:
    return Answered(name=side.stack, digest=resolve(store, side.stack, force=True).digest)


def votes(store: Store) -> list[Vote]:
    """Every vote, oldest first; lines that are none (torn by a kill, edited) are left out."""
    path = path_of(store)
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            found.append(Vote.parse(line, "a vote"))
        except UsageError:
            continue
    return found


def tally(cast_votes: Iterable[Vote]) -> list[dict[str, Any]]:
    """How often each pair of names met, and who won: most votes first.

    `a` and `b` are in the order of the alphabet; a stack against itself (another version that was
    asked for by digest, say) counts by its name.
    """
    wins: Counter[tuple[str, str]] = Counter()
    for vote in cast_votes:
        wins[vote.stacks.chosen.name, vote.stacks.rejected.name] += 1
    pairs = sorted({(min(pair), max(pair)) for pair in wins})
    rows = [
        {"a": a, "b": b, "a_wins": wins[a, b], "b_wins": wins[b, a] if a != b else 0}
        for a, b in pairs
    ]
    return sorted(rows, key=lambda row: -(int(row["a_wins"]) + int(row["b_wins"])))
