"""`lamina rm`: take names away, all that were asked or none."""

from collections.abc import Sequence

from lamina.core.errors import UnknownNameError, UsageError
from lamina.core.names import Name, parse_reference
from lamina.store.layout import Store


def remove(store: Store, texts: Sequence[str]) -> None:
    """Remove `support` with all its versions, `support:v2` alone, or an unnamed layer by @digest.

    Raises UnknownNameError listing every reference that means nothing, before anything is removed.
    """
    references = [(parse_reference(text), text) for text in texts]
    known = store.names()
    faults = []
    for reference, text in references:
        if isinstance(reference, Name):
            tags = known.get(reference.name)
            if tags is None and reference.name in store.bases():
                faults.append(f"{text} is a base; remove it with: lamina base rm {text}")
            elif tags is None or (":" in text and reference.tag not in tags):
                faults.append(f"nothing is called {text!r}")
        else:
            store.resolve(reference)
    if faults:
        raise UnknownNameError("nothing was removed", faults=faults, hint="see: lamina list")
    for reference, text in references:
        if not isinstance(reference, Name):  # an unnamed layer that the gate held back
            _remove_layer(store, store.resolve(reference).digest, text)
        elif ":" in text:
            store.untag(reference)
        else:
            store.untag_all(reference.name)


def _remove_layer(store: Store, digest: str, text: str) -> None:
    if not store.remove_root(digest):
        raise UsageError(
            f"{text} is not kept for its own sake: a name holds it",
            hint="remove the names that hold it; see: lamina list",
        )
