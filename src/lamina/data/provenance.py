"""Where a layer's data comes from, without the rows themselves."""

from collections.abc import Iterable

from lamina.core.digest import Digest, digest_json
from lamina.data.example import Example


def content_digest(examples: Iterable[Example]) -> Digest:
    """sha256 over the sorted content digests of the rows: their order does not matter."""
    return digest_json(sorted(example.content_digest() for example in examples))
