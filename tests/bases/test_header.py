"""safetensors headers: round trip against the library, and runnable attacks."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from lamina.bases.header import MAX_HEADER_BYTES, read_entries
from lamina.core.errors import BaseError

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def write(path, header, data=b"\0" * 8, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def test_reads_what_the_library_writes(tmp_path):
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array(3, dtype=np.int64),
        "none": np.zeros((0, 4), dtype=np.float16),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    entries = read_entries(path)
    assert [(e.name, e.dtype, e.shape) for e in entries] == [
        ("a", "I64", ()),
        ("b", "F32", (2, 3)),
        ("none", "F16", (0, 4)),
    ]
    data = path.read_bytes()
    for entry in entries:
        assert data[entry.start : entry.end] == tensors[entry.name].tobytes()


def entry(**changes):
    return {"a": GOOD["a"] | changes}


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (entry(dtype="F128"), b"\0" * 8, "unknown dtype"),
        (entry(dtype=["F32"]), b"\0" * 8, "unknown dtype"),
        (entry(shape=[3]), b"\0" * 8, "is not 8 bytes"),
        (entry(shape=[2**40, 2**40]), b"\0" * 8, "is not 8 bytes"),
        (entry(shape=[-2]), b"\0" * 8, "natural numbers"),
        (entry(shape=[True, 2]), b"\0" * 8, "natural numbers"),
        (entry(shape=2), b"\0" * 8, "natural numbers"),
        (entry(data_offsets=[8, 0]), b"\0" * 8, "is not -8 bytes"),
        (entry(data_offsets=[0, 8, 9]), b"\0" * 8, "natural numbers"),
        (entry(data_offsets=[8, 16]), b"\0" * 16, "leaves a hole"),
        (entry(extra=1), b"\0" * 8, "exactly dtype"),
        ({"a": 3}, b"", "exactly dtype"),
        ({"a": {"dtype": "F32"}}, b"", "exactly dtype"),
        (GOOD, b"\0" * 7, "the file has 7"),
        (GOOD, b"\0" * 9, "the file has 9"),
        (GOOD | {"b": GOOD["a"]}, b"\0" * 8, "overlaps"),
        (
            b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}',
            b"\0" * 8,
            "twice",
        ),
        (b"[]", b"", "not a JSON object"),
        (b"3", b"", "not a JSON object"),
        (b"{", b"", "not JSON"),
        (b"\xff\xfe", b"", "not JSON"),
        (b'{"a":' + b"[" * 100_000, b"", "not JSON"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path, header, data, why):
    with pytest.raises(BaseError, match=why):
        read_entries(write(tmp_path / "x.safetensors", header, data))


def test_a_name_twice_is_refused(tmp_path):
    one = json.dumps(GOOD["a"])
    two = json.dumps(GOOD["a"] | {"data_offsets": [8, 16]})
    header = f'{{"a":{one},"a":{two}}}'.encode()
    with pytest.raises(BaseError, match="twice"):
        read_entries(write(tmp_path / "x.safetensors", header, b"\0" * 16))


@pytest.mark.parametrize("length", [2**63, MAX_HEADER_BYTES + 1, 1000])
def test_a_size_bomb_is_not_read(tmp_path, length):
    with pytest.raises(BaseError, match="claims"):
        read_entries(write(tmp_path / "x.safetensors", GOOD, length=length))


def test_missing_empty_and_short_files(tmp_path):
    with pytest.raises(BaseError, match="there is no"):
        read_entries(tmp_path / "none.safetensors")
    for size in (0, 4, 7):
        path = tmp_path / "short.safetensors"
        path.write_bytes(b"\0" * size)
        with pytest.raises(BaseError):
            read_entries(path)


def test_every_fault_is_listed_at_once(tmp_path):
    header = {name: {"dtype": "X", "shape": [], "data_offsets": [0, 0]} for name in "abc"}
    with pytest.raises(BaseError) as caught:
        read_entries(write(tmp_path / "x.safetensors", header, b""))
    assert len(caught.value.faults) == 3


_WHOLE = save({"w": np.arange(4, dtype=np.float32), "v": np.zeros(3, dtype=np.int8)})


@given(st.integers(0, len(_WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_never_escapes_as_another_error(tmp_path_factory, at, value):
    data = bytearray(_WHOLE)
    data[at] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data)
    try:
        entries = read_entries(path)
    except BaseError:
        return
    assert all(8 < e.start <= e.end <= len(data) for e in entries)


@given(st.integers(0, len(_WHOLE) - 1))
def test_every_truncation_is_refused(tmp_path_factory, size):
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(_WHOLE[:size])
    with pytest.raises(BaseError):
        read_entries(path)
