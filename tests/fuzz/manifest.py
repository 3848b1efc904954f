"""Manifests and every kind of config, as bytes from a stranger."""

import atheris

with atheris.instrument_imports(include=["lamina"]):
    from lamina.core import manifests
    from lamina.core.errors import LaminaError
    from lamina.core.strict import loads
    from lamina.core.values import Value
    from lamina.store.strict import parse_strictly

from tests.fuzz.driver import fuzz
from tests.fuzz.seeds import MANIFESTS

KINDS = [
    kind
    for kind in vars(manifests).values()
    if isinstance(kind, type) and issubclass(kind, Value) and kind is not Value
]


def read(data: bytes) -> None:
    for kind in KINDS:
        try:
            found = parse_strictly(kind, data, "it")
        except LaminaError:
            continue
        again = parse_strictly(kind, found.to_bytes(), "it")
        assert again == found
        assert again.to_bytes() == found.to_bytes()
    try:
        loads(data)
    except ValueError:
        return


if __name__ == "__main__":
    fuzz(read, MANIFESTS)
