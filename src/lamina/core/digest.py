"""Digests: sha256 over bytes, files and canonical JSON, written `sha256:<64 hex>` as OCI does."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

CHUNK_BYTES = 1 << 20
SHORT_HEX = 12

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


def digest_bytes(data: bytes | memoryview) -> str:
    """sha256 of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, read in chunks. Raises OSError."""
    with path.open("rb") as handle:
        return "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8; NaN and infinities are refused (ValueError)."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def compact_json(value: Any) -> str:
    """JSON without spaces, keys in their own order: what a model reads keeps its author's order."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    """sha256 of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value))


def short(digest: str) -> str:
    """The first 12 hex digits, for people."""
    return digest.removeprefix("sha256:")[:SHORT_HEX]
