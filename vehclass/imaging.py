"""Turns the bytes of a photo into an RGB array of the size a model wants, or says why it cannot.

Training and classifying both come through `decode`: a model sees the same pixels in both. The bytes
decide what a file is, never its name; a cap on pixels is checked on the header, before any are decoded.
"""

import fcntl
import hashlib
import io
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vehclass.errors import DecodeError
from vehclass.imaging_limits import DEFAULT_FORMATS, DEFAULT_MAX_PIXELS, READERS
from vehclass.jpeg_eighth import decode_eighth
from vehclass.records import ImageFacts
from vehclass.resizing import resize

Pixels = NDArray[np.uint8]

# Above this an image may take hundreds of megabytes while it is decoded, so such are decoded one at a time.
GIANT_PIXELS: Final = 25_000_000
ORIENTATION_TAG: Final = 0x0112
# How to turn what the sensor saw into what the photographer saw, by EXIF orientation.
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class OneAtATime:
    """A lock between threads and, by a file that they share, between processes; one that dies lets go of it."""

    def __init__(self) -> None:
        self._handle: int | None = None
        self._tell: Callable[[bool], None] = lambda waits: None
        self._lock = threading.Lock()

    def share(self, handle: int, tell: Callable[[bool], None]) -> None:
        """Takes turns with all processes that have the same open file; `tell` hears when one is waited for, and is not."""
        self._handle, self._tell = handle, tell

    def __enter__(self) -> None:
        with ExitStack() as taken:
            taken.enter_context(self._lock)
            if self._handle is not None:
                self._tell(True)
                taken.callback(self._tell, False)
                try:
                    fcntl.lockf(self._handle, fcntl.LOCK_EX)
                except OSError as error:
                    message = f"The system gave no lock for it: {error.strerror}."
                    raise DecodeError("out_of_memory", message, permanent=False) from error
                self._tell(False)
            taken.pop_all()

    def __exit__(self, *_: object) -> None:
        try:
            if self._handle is not None:
                fcntl.lockf(self._handle, fcntl.LOCK_UN)
        finally:
            self._lock.release()


# Our own cap below is stricter than Pillow's and applies to every image; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None
# Decoders are registered before threads ask for them.
Image.init()
# Pillow reports odd metadata as warnings; the picture is what counts here, and its errors still raise.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_one_giant = OneAtATime()


def share_giants(handle: int, tell: Callable[[bool], None]) -> None:
    """Has this process take turns at giants with all others that have the same open file; `tell` hears when it waits."""
    _one_giant.share(handle, tell)


def sniff(data: bytes) -> str | None:
    """The format that the first bytes claim, in lower case; None when they are no image's."""
    head = data[:16]
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"BM") and len(data) > 26:
        return "bmp"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head[4:8] == b"ftyp":
        return {b"avif": "avif", b"avis": "avif"}.get(head[8:12], "heic")
    for magic, name in _OTHERS:
        if head.startswith(magic):
            return name
    return None


_OTHERS: Final = (
    (b"\0\0\0\x0cjP  ", "jpeg 2000"),
    (b"\xff\x4f\xff\x51", "jpeg 2000"),
    (b"\xff\x0a", "jpeg xl"),
    (b"\0\0\0\x0cJXL ", "jpeg xl"),
    (b"\0\0\1\0", "ico"),
    (b"%PDF", "pdf"),
    (b"%!PS", "postscript"),
    (b"8BPS", "photoshop"),
    (b"SIMPLE  =", "fits"),
    (b"<svg", "svg"),
)


def decode(
    data: bytes,
    size: tuple[int, int],
    *,
    formats: tuple[str, ...] = DEFAULT_FORMATS,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> tuple[Pixels, ImageFacts]:
    """The photo as a person sees it, stretched to `size` (width, height): uint8 [height, width, 3].

    EXIF orientation is applied, transparency is laid on white, and of several frames the first one
    counts. Large photos are scaled down while they are decoded (in the DCT domain for JPEG), then by an
    antialiased bilinear filter. Raises DecodeError.
    """
    if not data:
        raise DecodeError("empty", "The file has no bytes.")
    kind = sniff(data)
    if kind is None:
        raise DecodeError("not_an_image", f"The bytes are not those of an image{_resemblance(data)}.")
    if kind not in formats:
        raise DecodeError("unsupported_format", f"{kind.upper()} is not read here, only {', '.join(formats)}.")
    if kind == "webp":  # its decoder sets memory aside for the whole canvas as soon as it is opened
        _refuse_too_many(*_webp_canvas(data), max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=(READERS[kind],)) as image:
            _refuse_too_many(*image.size, max_pixels)
            width, height = image.size
            guard: AbstractContextManager[object] = nullcontext()
            if width * height > GIANT_PIXELS:
                guard = _one_giant
            with guard:
                image.draft(None, size)  # a no-op but for JPEG; None keeps the mode
                picture = _quick_eighth(data, image, (width, height)) or image
                picture.load()
                turn = _orientation(image)
                small = _as_rgb(picture, (size[1], size[0]) if turn >= 5 else size)
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError("out_of_memory", "There was not enough memory to decode it.", permanent=False) from error
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, TypeError, SyntaxError, struct.error ...
        raise _explained(error) from error
    if turn in TURNS:
        small = small.transpose(TURNS[turn])
    if turn >= 5:
        width, height = height, width
    facts = ImageFacts(width, height, kind, hashlib.sha256(data).hexdigest())
    return np.asarray(small, np.uint8), facts


def _quick_eighth(data: bytes, image: Image.Image, full: tuple[int, int]) -> Image.Image | None:
    """The picture, where `draft` chose an eighth of its full size and our decoder takes it; otherwise None."""
    width, height = full
    eighth = (-(-width // 8), -(-height // 8))
    if decode_eighth is None or image.size != eighth or image.mode not in ("RGB", "L"):
        return None
    if max(full) <= 8:  # so small that its eighth may be all of it
        return None
    pixels = decode_eighth(data, width, height)
    return None if pixels is None else Image.frombytes(image.mode, eighth, pixels)


def _refuse_too_many(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(
            "too_many_pixels",
            f"It claims {width} x {height} pixels; at most {max_pixels / 1e6:g} million are decoded.",
        )


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP header (RFC 9649, sections 2.5 to 2.7); 0 x 0 when it is cut off."""
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; broken EXIF counts as upright."""
    try:
        turn = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a photo is worth more than its metadata, and EXIF breaks in every way there is
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _as_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Any mode as RGB of `size`: 16 bits scaled to 8, transparency on white, colours as displayed."""
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        grey = np.asarray(image)  # of 16 bits, or of 32 with 16 in use: as it is, since it may be of any size
        image = Image.fromarray(np.clip(grey >> 8, 0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer.getchannel("A"))
    elif image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    small = resize(image, size)
    return small if small.mode == "RGB" else small.convert("RGB")


def _explained(error: Exception) -> DecodeError:
    text = str(error)
    if "truncated" in text.lower() or "premature end" in text.lower():
        return DecodeError("truncated", "The file ends before the picture does.")
    reason = text.splitlines()[0][:200] if text else type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "its header cannot be read"  # the original names a BytesIO object
    return DecodeError("corrupt", f"The picture is damaged: {reason}.")


def _resemblance(data: bytes) -> str:
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return ", but of an HTML page"
    if start.startswith(b"version https://git-lfs"):
        return ", but of a Git LFS pointer"
    return ""
