"""What licences ask of a stack: SPDX expressions, the model licences beside them, and conflicts.

Pure. This reads what authors state and recalls the best-known terms; it is not legal advice.

Expressions are SPDX's (`MIT AND (Apache-2.0 OR GPL-3.0-only)`), parsed by license-expression, in
any case. The names of model hubs are known beside SPDX's: `gemma`, `llama3.1`, `openrail`. Of an OR
the choice that asks least is taken. A name that is not known here is a doubt, never a permission.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from lamina.core.licence_terms import SHARE_ALIKE_INTO, Terms, terms_of

Kind = Literal["base", "layer", "data"]
Act = Literal["train", "combine", "share", "sell"]
"""'combine': put works into one file (squash, merge, export). 'share': hand it to others. 'sell':
use it commercially."""
NO_ADVICE = "what was read from stated licences; this is not legal advice"


@dataclass(frozen=True)
class Stated:
    """One work and the licence that its author states."""

    kind: Kind
    name: str
    licence: str | None
    author: str | None = None
    file: str | None = None
    """What joins it with others into one file; None for a work that stays by itself."""

    @property
    def label(self) -> str:
        """For people: `layer agent`."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Problem:
    """A conflict, or a doubt."""

    forbidden: bool
    """Whether the licence's own text rules out what was asked. Otherwise: look before you go on."""
    text: str

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {"forbidden": self.forbidden, "text": self.text}


@dataclass(frozen=True)
class Licensed:
    """What several works together carry."""

    expression: str | None
    """SPDX: the licences of all works, each once; None where nobody states one."""
    obligations: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def forbidden(self) -> tuple[str, ...]:
        """What a licence rules out."""
        return tuple(problem.text for problem in self.problems if problem.forbidden)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What to look at."""
        return tuple(problem.text for problem in self.problems if not problem.forbidden)

    def to_json(self) -> dict[str, Any]:
        """For --json and certificates."""
        return {
            "expression": self.expression,
            "obligations": list(self.obligations),
            "problems": [problem.to_json() for problem in self.problems],
            "note": NO_ADVICE,
        }


def read(licence: str | None) -> tuple[tuple[Terms, ...], ...]:
    """The ways in which a licence may be taken: each a set of terms that all hold.

    One way for a plain licence, several for an OR; none for a licence that nobody states. What
    does not parse is one unknown term.
    """
    if licence is None or not licence.strip():
        return ()
    return _ways(licence.strip())


def combine(works: Sequence[Stated], act: Act = "train") -> Licensed:
    """What the works together oblige to, and what speaks against an act.

    The expression names every licence; obligations and problems name whose they are.
    """
    taken = {work: _least(read(work.licence)) for work in dict.fromkeys(works)}
    problems = [*_unknown(taken), *_forbidden(taken, act), *_against_each_other(taken, act)]
    return Licensed(
        expression=_expression(taken.items()),
        obligations=tuple(_obligations(taken)),
        problems=tuple(dict.fromkeys(problems)),
    )


Taken = dict[Stated, tuple[Terms, ...]]
_Ways = tuple[tuple[Terms, ...], ...]
_MOST_WAYS = 64
"""Ways of one expression that are looked at; real ones have two or three."""
_LONGEST = 2000
"""Longest expression that is parsed, in characters."""


@lru_cache(maxsize=256)
def _ways(licence: str) -> _Ways:
    from license_expression import Licensing

    licensing = Licensing()
    whole = terms_of(licence)
    if whole.known or len(licence) > _LONGEST:  # some names have spaces or a word like an operator
        return ((whole,),)
    try:
        return _of_node(licensing.parse(licence), licensing)
    except Exception:  # strangers wrote it, and the parser asserts on some of what is no expression
        return ((whole,),)


def _of_node(node: Any, licensing: Any) -> _Ways:
    ways: Iterable[tuple[Terms, ...]]
    if isinstance(node, licensing.OR):
        ways = itertools.chain(*(_of_node(argument, licensing) for argument in node.args))
    elif isinstance(node, licensing.AND):
        product = itertools.product(*(_of_node(argument, licensing) for argument in node.args))
        ways = (tuple(dict.fromkeys(itertools.chain(*parts))) for parts in product)
    else:
        ways = [(terms_of(str(node)),)]
    return tuple(itertools.islice(ways, _MOST_WAYS))


def _least(ways: Sequence[tuple[Terms, ...]]) -> tuple[Terms, ...]:
    """The way that asks least; () where nothing is stated."""

    def asked(way: tuple[Terms, ...]) -> tuple[int, ...]:
        return tuple(map(sum, zip(*(terms.weight for terms in way), strict=True)))

    return min(ways, key=asked, default=())


def _expression(taken: Iterable[tuple[Stated, tuple[Terms, ...]]]) -> str | None:
    names = [terms.name for _, way in taken for terms in way]
    return " AND ".join(dict.fromkeys(names)) or None


def _obligations(taken: Taken) -> Iterable[str]:
    whose: dict[str, list[str]] = {}
    for work, way in taken.items():
        for terms in way:
            for text in terms.obligations:
                whose.setdefault(text, []).append(_credited(work))
    for text, works in whose.items():
        yield f"{text} [{', '.join(dict.fromkeys(works))}]"


def _credited(work: Stated) -> str:
    return work.label + (f" by {work.author}" if work.author else "")


def _unknown(taken: Taken) -> Iterable[Problem]:
    for work, way in taken.items():
        if not way:
            yield Problem(False, f"{work.label} states no licence: ask its author")
        for terms in way:
            if not terms.known:
                yield Problem(
                    False, f"{work.label} states {terms.name!r}, whose terms are not known here"
                )


def _forbidden(taken: Taken, act: Act) -> Iterable[Problem]:
    for work, way in taken.items():
        for terms in way:
            if terms.no_derivatives:
                yield from _adaptations(work, terms, act)
            if terms.non_commercial and act == "sell":
                yield Problem(
                    True, f"{work.label} is under {terms.name}: no commercial use ({terms.why_nc})"
                )


def _adaptations(work: Stated, terms: Terms, act: Act) -> Iterable[Problem]:
    """What a ban on derivatives means for a work in a file that joins it with others."""
    ban = f"{work.label} is under {terms.name}"
    if work.file is None:
        yield Problem(False, f"{ban}: what is trained over it or from it may be an adaptation")
    elif terms.no_derivatives == "make":
        yield Problem(True, f"{ban}, which allows no adaptation: {work.file} joins it with others")
    else:
        what = "which allows adaptations to be made but not to be shared"
        yield Problem(act == "share", f"{ban}, {what}: {work.file} joins it with others")


def _against_each_other(taken: Taken, act: Act) -> Iterable[Problem]:
    """In one file: share-alike licences of different kinds, and one beside a ban on commerce."""
    for file in dict.fromkeys(work.file for work in taken if work.file is not None):
        inside = [(w, terms) for w, way in taken.items() if w.file == file for terms in way]
        for (a, one), (b, two) in itertools.combinations(inside, 2):
            text = _clash(a, one, b, two) or _clash(b, two, a, one)
            if text:
                yield Problem(act == "share", f"{text} [{file}]")


def _clash(a: Stated, one: Terms, b: Stated, two: Terms) -> str | None:
    """Why one's share-alike cannot be kept beside two; None where it can."""
    if one.share_alike is None:
        return None
    who, other = f"{a.label} ({one.name})", f"{b.label} ({two.name})"
    if two.share_alike is not None:
        if _meet(one.share_alike, two.share_alike):
            return None
        return f"{who} and {other} each want a joined work under their own licence"
    if two.non_commercial and not one.non_commercial:
        return f"{who} wants a joined work to be as free as itself, {other} bans commercial use"
    return None


def _meet(one: str, two: str) -> bool:
    """Whether there is a licence that both share-alike kinds accept for a joined work."""
    ones, twos = ({kind} | SHARE_ALIKE_INTO.get(kind, set()) for kind in (one, two))
    return bool(ones & twos)
