"""Captioned images: folders and zips as people lay them out, and as somebody means harm."""

import base64
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from lamina.core.errors import DataError
from lamina.data.example import Example
from lamina.data.images import MAX_SIDE, file_bytes, flattened, opened
from lamina.data.read import read
from lamina.data.split import split
from tests.pictures import image_zip, picture, shapes


def folder_of(path, files):
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


RED, BLUE = picture("red", "circle", 0), picture("blue", "square", 3)
BOTH = [("a red circle", RED), ("a blue square", BLUE)]


def seen(source):
    return [(row.text, file_bytes(row.image)) for row in read([source]).examples]


@pytest.mark.parametrize("key", ["file_name", "file"])
@pytest.mark.parametrize("caption", ["text", "caption", "prompt"])
def test_a_folder_with_metadata(tmp_path, key, caption):
    rows = [{key: "train/r.png", caption: "a red circle"}, {key: "b.png", caption: "a blue square"}]
    lines = "\n".join(map(json.dumps, rows))
    files = {"train/r.png": RED, "b.png": BLUE, "metadata.jsonl": lines}
    assert seen(folder_of(tmp_path / "set", files)) == BOTH


def test_captions_beside_the_images(tmp_path):
    files = {"1.png": RED, "1.txt": " a red\ncircle ", "2.png": BLUE, "2.caption": "a blue square"}
    assert seen(folder_of(tmp_path / "set", files)) == BOTH


def test_kohyas_folders_name_what_is_in_them(tmp_path):
    files = {"10_a red circle/x.png": RED, "3_a blue square/x.png": BLUE}
    assert seen(folder_of(tmp_path / "set", files)) == BOTH


def test_a_zip_is_the_folder(tmp_path):
    source = image_zip(tmp_path / "set.zip", BOTH)
    assert seen(source) == BOTH
    found = read([source])
    assert found.format == "images"
    assert found.files[0].rows == 2
    assert found.files[0].bytes == os.path.getsize(source)


def test_a_row_travels_as_json(tmp_path):
    row = read([image_zip(tmp_path / "set.zip", BOTH)]).examples[0]
    again = Example.from_json(json.loads(json.dumps(row.to_json())))
    assert again == row
    assert again.content_digest() == row.content_digest()
    assert row.content_digest() != Example(text=row.text).content_digest()


def test_an_image_is_on_one_side_of_the_split_whatever_its_captions():
    pictures = [base64.b64encode(data).decode() for _, data in shapes(30)]
    rows = [Example(text=f"{word} {n}", image=p) for n, p in enumerate(pictures) for word in "ab"]
    sides = split(rows, 0.4, 100)
    held = {row.image for row in sides.held_out}
    assert held
    assert not held & {row.image for row in sides.train}


def test_large_images_are_scaled_down_and_what_is_clear_is_white(tmp_path):
    target = io.BytesIO()
    Image.new("RGBA", (MAX_SIDE + 500, 300), (0, 0, 0, 0)).save(target, "PNG")
    source = image_zip(tmp_path / "set.zip", [("nothing", target.getvalue())])
    (row,) = read([source]).examples
    with opened(file_bytes(row.image)) as image:
        assert max(image.size) == MAX_SIDE
        assert flattened(image, 16).getpixel((8, 8)) == (255, 255, 255)


# -- harm ------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 black pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    packed = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (RED[: len(RED) // 2], "no image that can be read"),
        (b"hello", "no image that can be read"),
        (b"\x80\x04\x95\x10pickle", "no image that can be read"),
        (bomb(), "3600000000 pixels"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, data, why):
    source = image_zip(tmp_path / "set.zip", [("a red circle", RED), ("broken", data)])
    with pytest.raises(DataError) as caught:
        read([source])
    assert any("1.png" in fault and why in fault for fault in caught.value.faults)
    assert [row.text for row in read([source], skip_bad=True).examples] == ["a red circle"]


def test_a_missing_caption_and_a_missing_image_are_named(tmp_path):
    lines = '{"file_name": "r.png"}\n{"file_name": "gone.png", "text": "x"}\nnot json\n[1]\n'
    source = folder_of(tmp_path / "set", {"r.png": RED, "metadata.jsonl": lines})
    with pytest.raises(DataError) as caught:
        read([source])
    text = "\n".join(caught.value.faults)
    for part in (
        ":1: r.png: no caption",
        ":2: 'gone.png': no such image",
        ":3: not JSON",
        ":4: nam",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a\\..\\..\\out.png", "C:/x.png"])
def test_a_zip_with_names_that_lead_out_of_it_is_refused(tmp_path, name):
    source = tmp_path / "set.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr(name, RED)
    with pytest.raises(DataError) as caught:
        read([str(source)])
    assert "leads out of it" in caught.value.faults[0]


def test_metadata_cannot_name_files_outside_of_the_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(RED)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    lines = '{"file_name": "../secret.png", "text": "x"}\n{"file_name": "link.png", "text": "y"}\n'
    source = folder_of(tmp_path / "set", {"metadata.jsonl": lines})
    with pytest.raises(DataError) as caught:
        read([source])
    assert len([fault for fault in caught.value.faults if "no such image" in fault]) == 2


def test_a_zip_bomb_and_a_torn_zip_are_refused(tmp_path):
    source = tmp_path / "set.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(33 << 20))
        archive.writestr("1.txt", "x")
    with pytest.raises(DataError) as caught:
        read([str(source)])
    assert "34,603,008 bytes" in caught.value.faults[0]
    whole = image_zip(tmp_path / "whole.zip", BOTH)
    torn = tmp_path / "torn.zip"
    torn.write_bytes(Path(whole).read_bytes()[:-40])
    with pytest.raises(DataError) as caught:
        read([str(torn)])
    assert "not a whole zip file" in caught.value.faults[0]


@pytest.mark.parametrize(
    "row",
    [
        {"image": "!!", "text": "x"},
        {"image": base64.b64encode(b"GIF89a..").decode(), "text": "x"},
        {"image": 7, "text": "x"},
        {"image": base64.b64encode(RED).decode()},
        {"image": base64.b64encode(RED).decode(), "text": " "},
    ],
)
def test_rows_of_strangers_say_what_is_wrong_with_an_image(row):
    with pytest.raises(DataError) as caught:
        Example.from_json(row)
    assert any("image" in fault for fault in caught.value.faults)
