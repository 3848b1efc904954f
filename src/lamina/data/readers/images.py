"""Captioned images: a folder or a zip, laid out as diffusers and kohya users lay them out.

Captions come from `metadata.jsonl` (`file_name` or `file`, and `text`, `caption` or `prompt`),
else from a text file beside the image (`cat.txt` or `cat.caption` for `cat.png`), else from the
folder's name where it is kohya's `10_a red fox`. A zip is never unpacked: its members are read
into memory, one after the other, and bounded.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lamina.core.digest import Digest, digest_json
from lamina.core.errors import DataError
from lamina.data.example import Example, kind
from lamina.data.images import MAX_BYTES, encoded
from lamina.data.readers.format import RowFormat, RowValue, first_key
from lamina.data.readers.rows import MAX_LINE_BYTES, Row, lines

METADATA = "metadata.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTION_SUFFIXES = (".txt", ".caption")
MAX_FILES = 200_000
MAX_TOTAL = 4 << 30
"""Bytes of all files together, as they are when unpacked: rows are kept in memory."""
_NAMES, _CAPTIONS = ("file_name", "file"), ("text", "caption", "prompt")
_REPEATS = re.compile(r"\d+_(.+)")


class ImageRows:
    """The rows of a folder or zip of images, and its seal."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        self._read: Callable[[str], bytes]
        if path.is_dir():
            self._sizes, self._read = _in_folder(path)
        else:
            self._sizes, self._read = _in_zip(path)

    def rows(self) -> Iterator[Row]:
        """One for each image, by the order of metadata.jsonl or of names."""
        described = [name for name in self._sizes if PurePosixPath(name).name == METADATA]
        if not described:
            images = [n for n in self._sizes if PurePosixPath(n).suffix.lower() in SUFFIXES]
            for number, name in enumerate(sorted(images), 1):
                yield self._row(number, name, self._beside(name))
            return
        number = 0
        for file in sorted(described):
            for value in self._described(file):
                number += 1
                yield value if isinstance(value, Row) else self._row(number, *value)

    def seal(self) -> tuple[Digest, int]:
        """sha256 of the zip, or over the names and digests of a folder's files; bytes."""
        if self._path.is_file():
            with self._path.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            return f"sha256:{digest}", self._path.stat().st_size
        files = {n: hashlib.sha256(self._read(n)).hexdigest() for n in sorted(self._sizes)}
        return digest_json(files), sum(self._sizes.values())

    def _described(self, file: str) -> Iterator[Row | tuple[str, str | None]]:
        """Image and caption of each line of a metadata file, or the fault of the line."""
        import io

        beside = PurePosixPath(file).parent
        for line in lines(io.BytesIO(self._bounded(file, 16 * MAX_LINE_BYTES))):
            if line.fault or not line.text.strip():
                if line.fault:
                    yield Row(line.number, None, line.fault)
                continue
            try:
                value = json.loads(line.text)
            except (ValueError, RecursionError) as error:
                yield Row(line.number, None, f"not JSON: {error}")
                continue
            name = value.get(first_key(value, _NAMES) or "") if isinstance(value, dict) else None
            if not isinstance(name, str):
                yield Row(line.number, None, f"names no image: no {' or '.join(_NAMES)}")
                continue
            caption = value.get(first_key(value, _CAPTIONS) or "")
            if caption is not None and not isinstance(caption, str):
                yield Row(line.number, None, f"caption: {kind(caption)}, not text")
                continue
            path = (beside / name).as_posix()
            if path not in self._sizes:
                yield Row(line.number, None, f"{name[:100]!r}: no such image in {self.name}")
                continue
            yield path, caption

    def _beside(self, name: str) -> str | None:
        """The caption that lies beside an image, or is in its folder's name."""
        path = PurePosixPath(name)
        for suffix in CAPTION_SUFFIXES:
            text = path.with_suffix(suffix).as_posix()
            if text in self._sizes:
                return self._bounded(text, MAX_LINE_BYTES).decode("utf-8", "replace").strip()
        repeats = _REPEATS.fullmatch(path.parent.name)
        return repeats[1] if repeats else None

    def _row(self, number: int, name: str, caption: str | None) -> Row:
        if not caption or not caption.strip():
            return Row(number, None, f"{name[:100]}: no caption (metadata.jsonl, or a .txt beside)")
        try:
            image = encoded(self._bounded(name, MAX_BYTES))
        except DataError as error:
            return Row(number, None, "; ".join(f"{name[:100]}: {f}" for f in error.faults))
        return Row(number, {"image": image, "text": " ".join(caption.split())})

    def _bounded(self, name: str, limit: int) -> bytes:
        if self._sizes[name] > limit:
            raise DataError("too large", faults=[f"{name[:100]} has {self._sizes[name]:,} bytes"])
        try:
            return self._read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
            raise DataError("damaged", faults=[f"cannot be read: {e}"]) from None


def _in_folder(folder: Path) -> tuple[Mapping[str, int], Callable[[str], bytes]]:
    """Sizes of a folder's files by name within it, and how to read one; no links are followed."""
    files: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
        if len(files) > MAX_FILES:
            raise DataError("too many", faults=[f"holds more than {MAX_FILES:,} files"])
    _check_total(files)
    return files, lambda name: (folder / name).read_bytes()


def _in_zip(path: Path) -> tuple[Mapping[str, int], Callable[[str], bytes]]:
    """The same of a zip: nothing but its own members can be named."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError) as error:
        raise DataError("damaged", faults=[f"not a whole zip file: {error}"]) from error
    members = [each for each in archive.infolist() if not each.is_dir()]
    if len(members) > MAX_FILES:
        raise DataError("too many", faults=[f"holds more than {MAX_FILES:,} files"])
    strange = [m.filename for m in members if _strange(m.filename)]
    if strange:
        raise DataError("strange names", faults=[f"{n[:100]!r} leads out of it" for n in strange])
    files = {member.filename: member.file_size for member in members}
    _check_total(files)

    def read(name: str) -> bytes:
        with archive.open(name) as handle:
            return handle.read(files[name] + 1)[: files[name]]

    return files, read


def _strange(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0]


def _check_total(files: Mapping[str, int]) -> None:
    total = sum(files.values())
    if total > MAX_TOTAL:
        raise DataError("too large", faults=[f"holds {total / 1e9:.1f} GB; give it in parts"])


# -- the rows' format ------------------------------------------------------------------------------


def _matches(row: RowValue) -> bool:
    return isinstance(row, dict) and isinstance(row.get("image"), str)


def _parse(row: RowValue) -> Example:
    assert isinstance(row, dict)
    known: dict[str, Any] = {key: row[key] for key in ("image", "text") if key in row}
    return Example.from_json(known)


IMAGES = RowFormat(
    name="images",
    expects="image and text (a folder or zip of captioned images)",
    matches=_matches,
    parse=_parse,
)
