"""Whose work is in a layer: credits, carried on from layer to layer. Pure.

Rules:

- A layer that was computed or carried from others hands its share on to those it came from; it is
  credited itself where its author is none of theirs (somebody combined, and that is work too).
- A new version of a layer keeps its share, and the older versions are credited without one: how
  much of the older is left in the newer, the weights do not tell.
- Two ways to one layer make one credit, their shares added.
"""

from collections.abc import Iterable, Sequence

from lamina.core.digest import Digest, short
from lamina.core.manifests import Credit, LayerConfig

_HANDS_ON = ("squashed", "merged", "carried", "distilled")
_DIGITS = 4
_UNKNOWN = "unknown"


def through(
    digest: Digest, config: LayerConfig, inner: Sequence[Credit], share: float | None
) -> tuple[Credit, ...]:
    """The credits of a layer that `share` of another one came from; `inner` are its own."""
    hands_on = config.origin in _HANDS_ON and bool(inner)
    own = Credit(
        layer=digest,
        name=config.name,
        author=config.author,
        licence=config.licence,
        made=config.origin,
        share=None if hands_on or share is None else round(share, _DIGITS),
    )
    theirs = tuple(
        each.model_copy(update={"share": _part(each.share, share) if hands_on else None})
        for each in inner
    )
    authors = {name for each in theirs for name in people(each.author)}
    if hands_on and set(people(config.author)) <= authors:
        return theirs
    return (own, *theirs)


def gathered(credits: Iterable[Credit]) -> tuple[Credit, ...]:
    """One credit a layer, in the order of their first mention, shares added."""
    found: dict[Digest, Credit] = {}
    for each in credits:
        known = found.get(each.layer)
        if known is not None and each.share is not None:
            share = round((known.share or 0.0) + each.share, _DIGITS)
            found[each.layer] = known.model_copy(update={"share": share})
        elif known is None:
            found[each.layer] = each
    return tuple(found.values())


def people(author: str | None) -> tuple[str, ...]:
    """The people in an author field; a joined layer without an author of its own lists several."""
    return tuple(name for part in (author or "").split(",") if (name := part.strip()))


def contributors(configs: Iterable[LayerConfig], credits: Iterable[Credit]) -> tuple[str, ...]:
    """Everybody whose work is in some layers, each once, in order."""
    named = [*(each.author for each in configs), *(each.author for each in credits)]
    return tuple(dict.fromkeys(name for author in named for name in people(author)))


def sentence(credits: Sequence[Credit]) -> str:
    """For people: "ann: assistant @3fa2b1c0d4e5 62%; ben: agent @0f12a4c6e8b0 38%"."""
    return "; ".join(
        f"{each.author or _UNKNOWN}: {each.name or 'a layer'} @{short(each.layer)}"
        + ("" if each.share is None else f" {each.share:.0%}")
        for each in credits
    )


def _part(share: float | None, of: float | None) -> float | None:
    return None if share is None or of is None else round(share * of, _DIGITS)
