"""Whatever bytes come in, only lamina's own errors come out; what is written reads back."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.bases.header import HeaderError, check_bytes
from lamina.core.digest import canonical_json
from lamina.core.errors import LaminaError, UsageError
from lamina.core.evidence import ScoresEvidence, SignatureEvidence
from lamina.core.manifests import (
    Descriptor,
    ImageIndex,
    ImageManifest,
    LayerConfig,
    StackConfig,
    StackedLayer,
)
from lamina.core.names import Name, parse_name, parse_reference
from lamina.core.plain import escaped_json, line_fault, shown, shown_in_line
from lamina.core.strict import MAX_DEPTH, loads
from lamina.share.keys import parse_public, public_line
from lamina.share.reference import parse_place
from lamina.store.strict import parse_strictly
from tests.fuzz.seeds import HEADERS, MANIFESTS

KINDS = (
    ImageManifest, ImageIndex, LayerConfig, StackConfig, ScoresEvidence, SignatureEvidence,
)  # fmt: skip
QUICK = settings(max_examples=150)
TEXTS = st.text(max_size=80)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4)
)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda raw: f"sha256:{raw.hex()}")


def same(kind, data):
    """Refused in our own words, or read and written back as the same."""
    try:
        found = parse_strictly(kind, data, "it")
    except LaminaError:
        return
    assert parse_strictly(kind, found.to_bytes(), "it") == found


@QUICK
@given(st.sampled_from(KINDS), st.binary(max_size=300))
def test_any_bytes(kind, data):
    same(kind, data)


@QUICK
@given(st.sampled_from(KINDS), VALUES)
def test_any_json(kind, value):
    same(kind, json.dumps(value).encode())


@QUICK
@given(st.sampled_from(MANIFESTS), st.data())
def test_right_ones_with_one_value_changed(raw, data):
    value = json.loads(raw)
    parent, key = data.draw(st.sampled_from(list(places(value))))
    parent[key] = data.draw(VALUES)
    for kind in KINDS:
        same(kind, json.dumps(value).encode())


def places(value):
    """Every (container, key) inside."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


@QUICK
@given(st.lists(st.tuples(DIGESTS, st.floats(allow_nan=False, allow_infinity=False)), max_size=5))
def test_stacks_read_back(layers):
    config = StackConfig(
        base="sha256:" + "0" * 64,
        layers=tuple(StackedLayer(layer=digest, weight=weight) for digest, weight in layers),
    )
    assert parse_strictly(StackConfig, config.to_bytes(), "it") == config


@QUICK
@given(st.lists(st.tuples(DIGESTS, st.integers(0, 2**63 - 1)), max_size=5))
def test_indexes_read_back(items):
    index = ImageIndex(
        manifests=tuple(
            Descriptor(mediaType="application/json", digest=digest, size=size)
            for digest, size in items
        )
    )
    assert parse_strictly(ImageIndex, index.to_bytes(), "it") == index


@QUICK
@given(VALUES)
def test_strict_json_is_json(value):
    """What it reads it reads as the library does; what is canonical and shallow it reads."""
    text = json.dumps(value)
    try:
        found = loads(text)
    except ValueError:
        return
    assert found == json.loads(text)
    assert loads(canonical_json(found)) == found


@QUICK
@given(st.integers(0, 3 * MAX_DEPTH))
def test_depth_is_exact(depth):
    text = "[" * depth + "]" * depth
    if 0 < depth <= MAX_DEPTH + 1:
        loads(text)
    else:
        with pytest.raises(ValueError):
            loads(text)


@QUICK
@given(st.sampled_from(HEADERS), st.data())
def test_headers_with_bytes_changed(raw, data):
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        entries = check_bytes(bytes(changed))
    except HeaderError:
        return
    assert all(0 <= entry.start <= entry.end <= len(raw) for entry in entries)


@QUICK
@given(st.dictionaries(TEXTS, VALUES, max_size=3), st.binary(max_size=64))
def test_any_header(header, rest):
    raw = json.dumps(header).encode()
    try:
        check_bytes(len(raw).to_bytes(8, "little") + raw + rest)
    except HeaderError:
        return


@QUICK
@given(TEXTS | st.from_regex(r"[a-z0-9._:@-]{1,30}", fullmatch=True))
def test_any_name(text):
    for parse in (parse_name, parse_reference, parse_place, parse_public):
        try:
            found = parse(text)
        except LaminaError:
            continue
        if isinstance(found, Name):
            assert parse_name(found.full) == found
            assert found.name.isascii()
            assert "/" not in found.full


@QUICK
@given(
    st.sampled_from(["oci://", "hf:", "oci://localhost:5000/", "oci://ghcr.io/a/b@sha256:"]),
    TEXTS,
)
def test_any_place(scheme, text):
    try:
        found = parse_place(scheme + text)
    except UsageError:
        return
    assert str(found).isprintable()


@QUICK
@given(st.binary(min_size=32, max_size=32), st.from_regex(r"[a-z0-9][a-z.@-]{0,9}", fullmatch=True))
def test_public_keys_read_back(raw, name):
    public = base64.b64encode(raw).decode()
    assert parse_public(public_line(public, name)) == (public, name)


@QUICK
@given(st.text(alphabet=st.characters(), max_size=60), VALUES)
def test_what_is_shown_gives_no_orders(text, value):
    for safe in (shown(text), shown_in_line(text), escaped_json(json.dumps(text))):
        assert not {c for c in safe if c in "\x00\x07\x1b\x7f\x9b\u202e\u2066"}
    assert line_fault(shown_in_line(text), 1000) is None
    written = json.dumps(value, ensure_ascii=False)
    assert json.dumps(json.loads(escaped_json(written))) == json.dumps(json.loads(written))
