"""Bytes become the pixels that a person sees, or a reason."""

import csv
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vehclass.errors import DecodeError
from vehclass.imaging import decode
from vehclass.imaging_limits import FORMATS

SIZE = (64, 48)


def picture(size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right: no turn or mirror looks the same."""
    image = Image.new("RGB", size, "white")
    half = (size[0] // 2, size[1] // 2)
    image.paste("red", (0, 0, *half))
    image.paste((0, 255, 0), (half[0], 0, size[0], half[1]))
    image.paste("blue", (0, half[1], half[0], size[1]))
    return image


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def corners(data: bytes, **options: object) -> list[tuple[int, ...]]:
    """The colour in the middle of each quarter: top left, top right, bottom left, bottom right."""
    pixels, _ = decode(data, SIZE, **options)  # type: ignore[arg-type]  # passed on as given
    assert pixels.shape == (48, 64, 3)
    assert pixels.dtype == np.uint8
    return [tuple(pixels[y, x].tolist()) for y in (12, 36) for x in (16, 48)]


def failure(data: bytes, **options: object) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, SIZE, **options)  # type: ignore[arg-type]  # passed on as given
    assert str(caught.value).endswith(".")
    return caught.value


PLAIN = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def near(found: list[tuple[int, ...]], wanted: list[tuple[int, ...]], by: int = 3) -> bool:
    return bool(np.abs(np.array(found) - np.array(wanted)).max() <= by)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_formats(format: str) -> None:
    data = encoded(picture(), format, **({"lossless": True} if format == "WEBP" else {}))
    assert near(corners(data), PLAIN)
    _, facts = decode(data, SIZE)
    assert (facts.width, facts.height, facts.format) == (640, 480, format.lower())
    assert len(facts.sha256) == 64


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(640, 480), (3000, 2000)])
def test_exif_orientation_is_applied(orientation: int, size: tuple[int, int]) -> None:
    """The camera stores turned pixels and a tag; what comes out is upright."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = picture(size)
    stored = image.transpose(inverse[orientation]) if orientation in inverse else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", exif=exif, quality=95)
    assert near(corners(data), PLAIN)
    _, facts = decode(data, SIZE)
    assert (facts.width, facts.height) == size


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("RGB", PLAIN),
        ("P", PLAIN),
        ("L", [(76,) * 3, (150,) * 3, (29,) * 3, (255,) * 3]),
        ("1", None),
        ("RGBA", PLAIN),
        ("LA", [(76,) * 3, (150,) * 3, (29,) * 3, (255,) * 3]),
    ],
)
def test_modes(mode: str, wanted: list[tuple[int, ...]] | None) -> None:
    found = corners(encoded(picture().convert(mode)))
    if wanted is not None:
        assert near(found, wanted)


def test_cmyk_jpeg() -> None:
    assert near(corners(encoded(picture().convert("CMYK"), "JPEG", quality=95)), PLAIN, by=6)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = np.zeros((480, 640), np.uint16)
    grey[:240, :320], grey[:240, 320:], grey[240:, :320] = 65535, 32768, 256
    assert near(corners(encoded(Image.fromarray(grey))), [(255,) * 3, (128,) * 3, (1,) * 3, (0,) * 3], by=1)


def test_transparency_is_laid_on_white() -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert corners(encoded(image)) == [(255, 255, 255)] * 4
    image.putalpha(Image.new("L", image.size, 128))
    assert near(corners(encoded(image)), [(255, 127, 127), (127, 255, 127), (127, 127, 255), (255, 255, 255)])


def test_a_palette_with_a_transparent_colour() -> None:
    image = picture().quantize(4)
    red = image.getpixel((0, 0))
    assert corners(encoded(image, transparency=red))[0] == (255, 255, 255)


def test_the_first_frame_counts() -> None:
    frames = [picture(), Image.new("RGB", (640, 480), "black")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert near(corners(data), PLAIN)


def test_a_scaled_decode_stays_near_the_full_one() -> None:
    """Scaling in the DCT domain may differ a little from decoding all of it and filtering."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (48, 64, 3), np.uint8)
    photo = Image.fromarray(small).resize((2048, 1536), Image.Resampling.BICUBIC)
    data = encoded(photo, "JPEG", quality=90)
    pixels, _ = decode(data, SIZE)
    full = np.asarray(Image.open(io.BytesIO(data)).resize(SIZE, Image.Resampling.BILINEAR), int)
    assert np.abs(pixels.astype(int) - full).mean() < 3


def test_the_name_decides_nothing_and_the_bytes_all() -> None:
    tiff = encoded(picture(), "TIFF")
    assert failure(tiff).code == "unsupported_format"
    assert near(corners(tiff, formats=("tiff",)), PLAIN)
    assert failure(encoded(picture(), "JPEG"), formats=("tiff",)).code == "unsupported_format"


@pytest.mark.parametrize("format", ["BMP", "GIF", "TIFF", "ICO", "JPEG2000", "PDF", "EPS", "AVIF", "PPM", "TGA"])
def test_other_formats_are_refused(format: str) -> None:
    data = encoded(picture((64, 64)), format)
    assert failure(data).code in ("unsupported_format", "not_an_image")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"\0" * 1000, "not_an_image"),
        (b"hello", "not_an_image"),
        (b"<html><body>404</body></html>", "not_an_image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image"),
        (b"\xff\xd8\xff", "corrupt"),
        (b"\x89PNG\r\n\x1a\n", "corrupt"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "corrupt"),
    ],
)
def test_what_is_no_picture(data: bytes, code: str) -> None:
    problem = failure(data)
    assert problem.code == code
    assert problem.permanent


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_cut_short(format: str) -> None:
    data = encoded(picture(), format)
    assert failure(data[: len(data) // 2]).code in ("truncated", "corrupt")


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )
    assert failure(bomb).code == "too_many_pixels"
    canvas = (
        b"RIFF"
        + struct.pack("<I", 30)
        + b"WEBPVP8X"
        + struct.pack("<I", 10)
        + b"\0" * 4
        + b"\xff\xff\xff"
        + b"\xff\xff\xff"
    )
    assert failure(canvas).code == "too_many_pixels"
    assert failure(encoded(picture()), max_pixels=1000).code == "too_many_pixels"


def test_no_byte_of_a_photo_can_crash_it() -> None:
    """A thousand photos with a few bytes changed: each is a picture or has a reason."""
    rng = np.random.default_rng(7)
    originals = [encoded(picture((96, 64)), "JPEG"), encoded(picture((96, 64))), encoded(picture((96, 64)), "WEBP")]
    outcomes = set()
    for number in range(1000):
        data = bytearray(originals[number % 3])
        for at in rng.integers(0, len(data), 5):
            data[at] = rng.integers(0, 256)
        try:
            decode(bytes(data), SIZE)
            outcomes.add("ok")
        except DecodeError as error:
            outcomes.add(error.code)
    assert "ok" in outcomes
    assert outcomes <= {"ok", "corrupt", "truncated", "not_an_image", "too_many_pixels", "unsupported_format"}


def test_every_bad_file_is_a_picture_or_has_a_reason(badinput: Path) -> None:
    with (badinput / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        manifest = {row["file"]: row for row in csv.DictReader(file)}
    codes: dict[str, int] = {}
    for name, row in manifest.items():
        data = (badinput / name).read_bytes()
        try:
            pixels, facts = decode(data, SIZE)
            assert pixels.shape == (48, 64, 3)
            assert facts.format in ("jpeg", "png", "webp")
            assert row["format"] in ("JPEG", "MPO", "PNG", "WEBP"), name
            code = "ok"
        except DecodeError as error:
            code = error.code
            assert error.permanent, name
        codes[code] = codes.get(code, 0) + 1
        # What Pillow reads and we allow is read, unless it is too large.
        if row["pillow_result"] == "ok" and row["format"] in ("JPEG", "MPO", "PNG", "WEBP"):
            assert code in ("ok", "too_many_pixels"), (name, code)
    assert codes["ok"] > 50
    assert set(codes) == {
        "ok",
        "empty",
        "not_an_image",
        "unsupported_format",
        "truncated",
        "corrupt",
        "too_many_pixels",
    }


def test_bad_files_with_every_format_allowed(badinput: Path) -> None:
    for file in sorted(badinput.rglob("*")):
        if file.is_file():
            try:
                decode(file.read_bytes(), SIZE, formats=FORMATS)
            except DecodeError as error:
                assert error.code


def test_all_orientations_of_real_files_look_alike(badinput: Path) -> None:
    for kind in ("Landscape", "Portrait"):
        seen = [decode((badinput / "exif" / f"{kind}_{n}.jpg").read_bytes(), SIZE)[0].astype(int) for n in range(1, 9)]
        for other in seen[1:]:
            assert np.abs(other - seen[0]).mean() < 8
