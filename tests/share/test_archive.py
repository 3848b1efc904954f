"""A parcel as a file: what goes in, what comes out, and tars that nobody should open."""

import gzip
import io
import json
import os
import shutil
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamina.core.errors import LaminaError, MissingBlobError, ShareError, UsageError
from lamina.core.manifests import LAYER_TYPE, Descriptor
from lamina.core.names import Name
from lamina.share import archive
from lamina.share.archive import Archive
from lamina.share.incoming import admit, look
from lamina.share.parcel import parcel_of
from lamina.store.layout import Store

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
HEX = "a" * 64


@pytest.fixture
def home(made):
    return Store.open(made)


@pytest.fixture
def packed(home, tmp_path):
    """`times` with its base, as a file."""
    path = tmp_path / "times.oci.tar"
    parcel = parcel_of(home, home.resolve(Name("times")).digest, with_base=True)
    assert archive.write(path, home, parcel, "times") == path.stat().st_size
    return path


def test_what_was_written_is_taken_whole(home, packed, tmp_path):
    source = Archive(packed)
    source.check()
    away = Store.open(tmp_path / "away")
    digest = home.resolve(Name("times")).digest
    assert source.root() == digest
    incoming = look(away, source, digest)
    assert len(incoming.evidence) > 2
    root = admit(away, source, incoming, label="a file")
    assert root.digest == digest
    assert away.verify().clean
    for layer in incoming.layers:
        here = {entry.digest for entry in away.referrers(layer)}
        assert here == {entry.digest for entry in home.referrers(layer)}


def test_equal_parcels_make_equal_files(home, packed, tmp_path):
    again = tmp_path / "again.oci.tar"
    os.utime(packed, (1, 1))
    parcel = parcel_of(home, home.resolve(Name("times")).digest, with_base=True)
    archive.write(again, home, parcel, "times")
    assert again.read_bytes() == packed.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        archive.write(again, home, parcel, "times")


def test_what_is_left_out_takes_its_evidence_along(home, packed, tmp_path):
    digest = home.resolve(Name("times")).digest
    parcel = parcel_of(home, digest)
    lower = next(item.digest for item in parcel.manifests if item.artifactType == LAYER_TYPE)
    path = tmp_path / "thin.oci.tar"
    archive.write(path, home, parcel, "times", leave_out=[lower])
    source = Archive(path)
    assert source.referrers(lower) == ()
    assert Archive(packed).referrers(lower) != ()
    with pytest.raises(MissingBlobError):
        source.manifest(lower)
    with pytest.raises(MissingBlobError):
        look(Store.open(tmp_path / "away"), source, digest)
    assert look(home, source, digest).root.digest == digest  # who has it fills it in


def test_a_write_that_fails_leaves_no_file(home, tmp_path):
    store = Store.open(shutil.copytree(home.root, tmp_path / "copy", symlinks=True))
    parcel = parcel_of(store, store.resolve(Name("times")).digest)
    victim = max(parcel.blobs, key=lambda blob: blob.size)
    path = store.blobs_dir / victim.digest.removeprefix("sha256:")
    path.write_bytes(b"x" * victim.size)
    with pytest.raises(LaminaError, match="match"):
        archive.write(tmp_path / "out" / "a.oci.tar", store, parcel, "times")
    assert list((tmp_path / "out").iterdir()) == []


# -- strangers' files ------------------------------------------------------------------------------


def tar_of(path, *members, index=b'{"schemaVersion":2,"manifests":[]}', end=True, **options):
    """A tar of (name, bytes or a change to its header) members beside a layout and an index."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, what in (("oci-layout", LAYOUT), ("index.json", index), *members):
            header = tarfile.TarInfo(name)
            data = what if isinstance(what, bytes) else b""
            header.size = len(data)
            if not isinstance(what, bytes):
                what(header)
            tar.addfile(header, io.BytesIO(data))
    data = buffer.getvalue()
    path.write_bytes(data if end else data[: len(data) - len(data) % 10240 - 10240] or data)
    return path


def link(kind, target="/etc/passwd"):
    def change(header):
        header.type, header.linkname = kind, target

    return change


def of_type(kind):
    def change(header):
        header.type = kind

    return change


@pytest.mark.parametrize(
    ("name", "what", "text"),
    [
        ("../escape", b"x", "has no place in an image layout"),
        ("/etc/cron.d/x", b"x", "has no place in an image layout"),
        ("blobs/sha256/../../x", b"x", "has no place in an image layout"),
        (f"blobs/sha256/{HEX[:-1]}", b"x", "has no place in an image layout"),
        (f"blobs/sha256/{HEX.upper()}", b"x", "has no place in an image layout"),
        (f"blobs/sha512/{HEX}", b"x", "has no place in an image layout"),
        ("index.json", b"{}", "comes twice"),
        (f"blobs/sha256/{HEX}", link(tarfile.SYMTYPE), "is no regular file"),
        (f"blobs/sha256/{HEX}", link(tarfile.LNKTYPE, "index.json"), "is no regular file"),
        (f"blobs/sha256/{HEX}", of_type(tarfile.CHRTYPE), "is no regular file"),
        (f"blobs/sha256/{HEX}", of_type(tarfile.FIFOTYPE), "is no regular file"),
        (f"blobs/sha256/{HEX}", of_type(tarfile.GNUTYPE_SPARSE), "is no regular file"),
        ("blobs/sha256", link(tarfile.SYMTYPE, "/tmp"), "is no regular file"),
        ("etc", of_type(tarfile.DIRTYPE), "is no regular file"),
        ("x" * 300, b"x", "is no regular file"),  # GNU's long names
    ],
)
def test_tars_that_are_not_opened(tmp_path, name, what, text):
    path = tar_of(tmp_path / "bad.tar", (name, what), format=tarfile.GNU_FORMAT)
    with pytest.raises(ShareError, match=text):
        Archive(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar"]


@pytest.mark.parametrize("record", [{"path": "../x"}, {"size": "999999"}, {"linkpath": "/etc"}])
def test_extended_headers_that_change_what_follows(tmp_path, record):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        header = tarfile.TarInfo("oci-layout")
        header.size, header.pax_headers = len(LAYOUT), record
        tar.addfile(header, io.BytesIO(LAYOUT))
    path = tmp_path / "bad.tar"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ShareError, match=r"renames or resizes|ends inside"):
        Archive(path)


def test_extended_headers_with_times_are_harmless(tmp_path):
    def later(header):
        header.mtime = 1.5

    path = tar_of(tmp_path / "a.tar", ("blobs", of_type(tarfile.DIRTYPE)),
                  ("./blobs/sha256/", of_type(tarfile.DIRTYPE)), (f"blobs/sha256/{HEX}", later),
                  format=tarfile.PAX_FORMAT)  # fmt: skip
    source = Archive(path)
    assert list(source.blob(Descriptor(mediaType="x/y", digest=f"sha256:{HEX}", size=0))) == []
    with pytest.raises(ShareError, match="damaged"):
        source.check()
    with pytest.raises(ShareError, match="names no object"):
        source.root()


def test_a_header_that_claims_more_than_there_is(tmp_path):
    path = tar_of(tmp_path / "a.tar")
    data = bytearray(path.read_bytes())
    header = tarfile.TarInfo.frombuf(bytes(data[:512]), "utf-8", "strict")
    header.size = 1 << 62
    data[:512] = header.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data)
    with pytest.raises(ShareError, match="it ends inside of 'oci-layout'"):
        Archive(path)


def test_compressed_and_other_files(tmp_path):
    path = tar_of(tmp_path / "a.tar")
    (tmp_path / "a.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("a.gz",):
        with pytest.raises(ShareError, match="compressed"):
            Archive(tmp_path / name)
    (tmp_path / "zeros").write_bytes(b"\0" * 10240)
    with pytest.raises(ShareError, match="no oci-layout in it"):
        Archive(tmp_path / "zeros")


@pytest.mark.parametrize(
    "index",
    [
        b"[]", b"{}", b"{", b'{"schemaVersion":2,"manifests":[{"digest":"sha256:../x"}]}',
        b'{"schemaVersion":2,"manifests":[],"manifests":[]}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_an_index_that_is_none(tmp_path, index):
    with pytest.raises(LaminaError):
        Archive(tar_of(tmp_path / "a.tar", index=index))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 4095), value=st.integers(0, 255))
def test_no_changed_byte_breaks_the_reader(tmp_path, place, value):
    listed = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "size": 3,
        "digest": f"sha256:{HEX}",
        "annotations": {"org.opencontainers.image.ref.name": "x"},
    }
    index = json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode()  # fmt: skip
    path = tar_of(tmp_path / "a.tar", (f"blobs/sha256/{HEX}", b"abc"), index=index)
    data = bytearray(path.read_bytes())
    data[place] = value
    path.write_bytes(data)
    try:
        source = Archive(path)
        digest = source.root()
        assert len(source.manifest(digest)) <= len(data)
        source.check()
    except LaminaError:
        pass
