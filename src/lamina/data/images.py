"""Images as rows carry them: the bytes of a PNG, JPEG or WebP file, in base64 within the row.

Whoever made the file may mean harm: only these three decoders are ever asked, a picture's size is
looked at before its pixels are, and nothing is written to disk.
"""

import base64
import binascii
import contextlib
import io
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lamina.core.errors import DataError, MissingPartError

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64 << 20
"""Pixels of the largest image that is opened."""
MAX_SIDE = 1024
"""Larger images are scaled down to this when they are read: no base at hand draws larger ones."""
MAX_BYTES = 32 << 20
"""Bytes of the largest image file that is read."""
_MARKS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}


def pillow() -> ModuleType:
    """Pillow's `Image` module. Raises MissingPartError."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPartError("images need Pillow", hint="pip install 'lamina[images]'") from error
    return Image


def encoded(data: bytes) -> str:
    """An image file as a row carries it, scaled down where it is larger than MAX_SIDE.

    Raises DataError for what is no image, or none that can be read whole.
    """
    with opened(data) as image:
        if max(image.size) > MAX_SIDE:
            data = _smaller(image)
    return base64.b64encode(data).decode("ascii")


def file_bytes(text: str) -> bytes:
    """The image file that a row carries. Raises DataError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("this image cannot be used", faults=[f"image: {error}"]) from None


def carried_fault(text: str) -> str | None:
    """Why a row's image is none, by its first bytes alone: cheap, and without Pillow."""
    try:
        head = base64.b64decode(text[:8], validate=True)
    except (binascii.Error, ValueError):
        return "not in base64"
    return None if any(map(head.startswith, _MARKS)) else f"no {', '.join(KINDS)} file"


@contextlib.contextmanager
def opened(data: bytes) -> "Iterator[Image]":
    """An image file's picture, all of its pixels read. Raises DataError."""
    library = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that nobody asks for
            image: Any = library.open(io.BytesIO(data), formats=KINDS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError("too large", faults=[f"{width} x {height} pixels are too many"])
            image.load()
    except DataError:
        raise
    except Exception as error:  # each decoder fails in its own way
        said = str(error).split("<")[0].strip() or type(error).__name__
        raise DataError("no image", faults=[f"no image that can be read: {said}"]) from None
    with image:
        yield image


def flattened(image: "Image", side: int) -> "Image":
    """RGB, its middle square, `side` pixels wide; what is transparent is white."""
    library = pillow()
    if image.mode not in ("RGB", "L"):
        clear = image.convert("RGBA")
        white = library.new("RGBA", clear.size, (255, 255, 255, 255))
        image = library.alpha_composite(white, clear)
    image = image.convert("RGB")
    short = min(image.size)
    left, top = ((n - short) // 2 for n in image.size)
    square = image.crop((left, top, left + short, top + short))
    if short == side:
        return square
    return square.resize((side, side), library.Resampling.LANCZOS)


def _smaller(image: "Image") -> bytes:
    copy = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    copy.thumbnail((MAX_SIDE, MAX_SIDE))
    target = io.BytesIO()
    copy.save(target, "PNG")
    return target.getvalue()
