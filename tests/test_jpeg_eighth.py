"""The C decoder gives, to the last bit, what libjpeg gives at an eighth, or leaves the photo to it."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import jpegs
from vehclass import imaging, jpeg_eighth
from vehclass.errors import DecodeError

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261122
COMPILER = shutil.which("cc")
INCLUDE = sysconfig.get_paths()["include"]


def decode(data: bytes, width: int, height: int) -> bytes | None:
    if jpeg_eighth.decode_eighth is None:
        pytest.skip("vehclass was installed where there was no C compiler")
    return jpeg_eighth.decode_eighth(data, width, height)


def drawn(mode: str = "RGB", **options: object) -> tuple[bytes, int, int]:
    """A photo's bytes and its sides."""
    image = jpegs.picture(random.Random(SEED), "L" if mode == "L" else "RGB").convert(mode)
    return jpegs.encoded(image, **options), *image.size


def test_it_is_compiled_where_there_is_a_compiler() -> None:
    if COMPILER is None or not (Path(INCLUDE) / "Python.h").exists():
        pytest.skip("there is no C compiler here, or not Python's headers")
    assert jpeg_eighth.decode_eighth is not None


def test_usual_photos_have_libjpegs_pixels() -> None:
    chance = random.Random(SEED)
    found = Counter(jpegs.compare(decode, jpegs.usual(chance)) for _ in range(400))
    assert found == {"equal": 400}


def test_damaged_photos_have_libjpegs_pixels_or_are_left_to_it() -> None:
    chance = random.Random(SEED)
    found = Counter(jpegs.compare(decode, jpegs.damaged(chance, jpegs.usual(chance))) for _ in range(6_000))
    assert not [word for word in found if word.startswith("wrong")], found
    assert found["equal"] > 500
    assert found["both refuse"] > 100
    assert found["left to libjpeg"] > 500


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"keep_rgb": True, "subsampling": "4:4:4"}],
    ids=["progressive", "RGB"],
)
def test_unusual_ones_are_left_to_libjpeg(options: dict[str, object]) -> None:
    assert decode(*drawn(**options)) is None


def test_four_colours_are_left_to_libjpeg() -> None:
    assert decode(*drawn("CMYK")) is None


def segments(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """What stands before the picture, as marker and content, and the rest from the first bit on."""
    found, at = [], 2
    while not found or found[-1][0] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return found, data[at:]


def joined(headers: list[tuple[int, bytes]], rest: bytes) -> bytes:
    written = [bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content for marker, content in headers]
    return b"\xff\xd8" + b"".join(written) + rest


JFIF, ADOBE, TABLES, CODES, FRAME, RESTART = 0xE0, 0xEE, 0xDB, 0xC4, 0xC0, 0xDD
PLAIN_JPEG, _, _ = drawn(quality=75)
HEADERS, REST = segments(PLAIN_JPEG)
WITHOUT_JFIF = [one for one in HEADERS if one[0] != JFIF]
OTHER_TABLES = [one for one in segments(drawn(quality=70)[0])[0] if one[0] == TABLES]
OPTIMIZED, OPTIMIZED_REST = segments(drawn(quality=75, optimize=True)[0])


def adobe(transform: int) -> tuple[int, bytes]:
    return ADOBE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])


def changed(kind: int, change: Callable[[bytes], bytes]) -> bytes:
    """The plain one with the content of its first header of a kind changed."""
    first = next(number for number, one in enumerate(HEADERS) if one[0] == kind)
    return joined([(one[0], change(one[1]) if n == first else one[1]) for n, one in enumerate(HEADERS)], REST)


def same_ids(frame: bytes) -> bytes:
    return frame[:9] + frame[6:7] + frame[10:]


def all_ones(codes: bytes) -> bytes:
    """A tenth code of the last length, all ones, for a symbol that no photo uses."""
    assert codes[:17] == bytes([0, 0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
    return codes[:9] + b"\x02" + codes[10:] + b"\0"


AS_LIBJPEG_DOES = {
    "as it is": (PLAIN_JPEG, "equal"),
    "JFIF and Adobe disagree": (joined([HEADERS[0], adobe(0), *HEADERS[1:]], REST), "equal"),
    "Adobe's YCbCr": (joined([adobe(1), *WITHOUT_JFIF], REST), "equal"),
    "Adobe's RGB": (joined([adobe(0), *WITHOUT_JFIF], REST), "left to libjpeg"),
    "an unknown transform of Adobe's": (joined([adobe(2), *WITHOUT_JFIF], REST), "left to libjpeg"),
    "neither": (joined(WITHOUT_JFIF, REST), "equal"),
    "the last of two quantizers counts": (joined([*OTHER_TABLES, *HEADERS], REST), "equal"),
    "also behind the frame": (joined([*HEADERS[:-1], *OTHER_TABLES, HEADERS[-1]], REST), "equal"),
    "the last of two codes counts": (
        joined([*(one for one in HEADERS if one[0] == CODES), *OPTIMIZED], OPTIMIZED_REST),
        "equal",
    ),
    "the last of two restarts counts": (
        joined([(RESTART, b"\0\3"), (RESTART, b"\0\0"), *HEADERS], REST),
        "equal",
    ),
    "two frames": (
        joined([*HEADERS[:-1], *(one for one in HEADERS if one[0] == FRAME), HEADERS[-1]], REST),
        "both refuse",
    ),
    "bytes to fill": (PLAIN_JPEG.replace(b"\xff\xc0", b"\xff\xff\xc0", 1), "left to libjpeg"),
    "a restart before the end": (PLAIN_JPEG[:-2] + b"\xff\xd0\xff\xd9", "left to libjpeg"),
    "a code of ones": (changed(CODES, all_ones), "both refuse"),
    "three components of one name": (changed(FRAME, same_ids), "both refuse"),
}


@pytest.mark.parametrize(("data", "wanted"), AS_LIBJPEG_DOES.values(), ids=AS_LIBJPEG_DOES)
def test_headers_are_read_as_libjpeg_reads_them(data: bytes, wanted: str) -> None:
    assert jpegs.compare(decode, data) == wanted


def test_the_longest_side() -> None:
    for width, wanted in ((65_500, "equal"), (65_501, "both refuse")):
        data = bytearray(jpegs.encoded(Image.new("L", (65_500, 16), 77)))
        at = data.index(b"\xff\xc0") + 7
        data[at : at + 2] = width.to_bytes(2, "big")
        assert jpegs.compare(decode, bytes(data)) == wanted, width


def test_grey_in_units_of_four() -> None:
    """One component comes block by block, whatever its factors say."""
    data = bytearray(drawn("L")[0])
    data[data.index(b"\xff\xc0") + 11] = 0x22
    assert jpegs.compare(decode, bytes(data)) in ("equal", "left to libjpeg")


def test_several_pictures_in_a_file() -> None:
    """As phones write them (MPO): the first one counts."""
    out = io.BytesIO()
    first = jpegs.picture(random.Random(SEED), "RGB")
    first.save(out, "MPO", save_all=True, append_images=[first.rotate(180)])
    data = out.getvalue()
    assert decode(data, *first.size) is not None
    assert jpegs.compare(decode, data) == "equal"


def test_nothing_but_bytes_is_taken() -> None:
    data, width, height = drawn()
    with pytest.raises(TypeError):
        decode(bytearray(data), width, height)  # type: ignore[arg-type]  # on purpose


def test_another_size_than_the_header_says_is_refused() -> None:
    data, width, height = drawn()
    assert decode(data, width, height) is not None
    for wrong in ((width + 1, height), (width, height - 1), (height, width), (0, 0), (-1, 5), (65_536, 65_536)):
        assert decode(data, *wrong) is None


def test_every_byte_has_to_be_there_and_what_follows_does_not_matter() -> None:
    data, width, height = drawn(quality=90)
    for end in {*range(0, len(data), 7), *range(len(data) - 30, len(data))}:
        assert decode(data[:end], width, height) is None, end
    assert decode(data[:-2] + b"\0" + data[-2:], width, height) is None
    whole = decode(data, width, height)
    assert whole is not None
    assert decode(data + b"\xff\xd8 and another picture", width, height) == whole


def test_colour_spread_downwards() -> None:
    """4:4:0, as turned cameras write it: a 4:2:2 photo of a square, told to have its units upright."""
    image = Image.fromarray(np.random.default_rng(SEED).integers(0, 256, (64, 64, 3), np.uint8))
    data = bytearray(jpegs.encoded(image, quality=80, subsampling="4:2:2"))
    frame = data.index(b"\xff\xc0")
    assert data[frame + 11] == 0x21
    data[frame + 11] = 0x12
    assert jpegs.compare(decode, bytes(data)) == "equal"


def test_quantizers_of_sixteen_bits() -> None:
    data, width, height = drawn(quality=60)
    at = data.index(b"\xff\xdb")
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    assert length == 67
    table = data[at + 5 : at + 69]
    wide = b"\xff\xdb" + (131).to_bytes(2, "big") + bytes([0x10 | data[at + 4]])
    wide += b"".join(value.to_bytes(2, "big") for value in table)
    assert jpegs.compare(decode, data[:at] + wide + data[at + 2 + length :]) == "equal"
    assert decode(data[:at] + wide + data[at + 2 + length :], width, height) == decode(data, width, height)


def big(**options: object) -> bytes:
    """More than eight times the size asked for: decoded at an eighth."""
    numbers = np.random.default_rng(SEED).integers(0, 256, (60, 80, 3), np.uint8)
    return jpegs.encoded(Image.fromarray(numbers).resize((1200, 900)), quality=85, **options)


def exif(turn: int) -> Image.Exif:
    tags = Image.Exif()
    tags[imaging.ORIENTATION_TAG] = turn
    return tags


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_whole_way_gives_the_same_with_and_without_it(turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = big(exif=exif(turn)), []

    def heard(*given: bytes | int) -> bytes | None:
        asked.append(decode(*given))  # type: ignore[arg-type]  # handed on
        return asked[-1]

    monkeypatch.setattr(imaging, "decode_eighth", heard)
    quick, facts = imaging.decode(data, (96, 96))
    assert [pixels is not None for pixels in asked] == [True]
    monkeypatch.setattr(imaging, "decode_eighth", None)
    plain, plain_facts = imaging.decode(data, (96, 96))
    assert np.array_equal(quick, plain)
    assert facts == plain_facts


def test_larger_scales_and_other_formats_do_not_ask_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bytes | None:
        raise AssertionError

    monkeypatch.setattr(imaging, "decode_eighth", never)
    imaging.decode(big(), (200, 200))
    for small in (1, 8):
        imaging.decode(jpegs.encoded(Image.new("RGB", (small, small))), (1, 1))


def test_what_it_leaves_is_judged_by_libjpeg() -> None:
    data = big()
    with pytest.raises(DecodeError, match="ends before the picture does"):
        imaging.decode(data[: len(data) // 2], (96, 96))


def test_without_it_libjpeg_decodes_and_doctor_says_so(tmp_path: Path) -> None:
    photo = tmp_path / "big.jpg"
    photo.write_bytes(big())
    code = (
        "import hashlib, sys; from pathlib import Path\n"
        "if sys.argv[2] == 'without': sys.modules['vehclass._jpeg_eighth'] = None\n"
        "from vehclass import imaging; from vehclass.cli.doctor import _large_jpegs\n"
        "pixels, _ = imaging.decode(Path(sys.argv[1]).read_bytes(), (96, 96))\n"
        "print(imaging.decode_eighth is None, hashlib.sha256(pixels).hexdigest(), _large_jpegs())"
    )

    def said(how: str) -> list[str]:
        words = [sys.executable, "-c", code, str(photo), how]
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split(" ", 2)

    without, with_it = said("without"), said("with")
    assert without[0] == "True"
    assert "install a C compiler" in without[2]
    assert without[1] == with_it[1]


def test_threads_decode_at_once() -> None:
    data = [jpegs.usual(random.Random(number)) for number in range(24)]
    alone = [jpegs.compare(decode, one) for one in data]
    found: dict[int, list[str]] = {}

    def work(number: int) -> None:
        found[number] = [jpegs.compare(decode, one) for one in data]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [alone] * 4
    assert set(alone) == {"equal"}


@pytest.mark.parametrize("count", [6_000, pytest.param(500_000, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)])])
def test_no_byte_is_read_or_written_where_it_should_not_be(count: int, tmp_path: Path) -> None:
    """Every warning is an error to the compiler, and its watchers of addresses and of arithmetic look at each step."""
    if COMPILER is None or not (Path(INCLUDE) / "Python.h").exists():
        pytest.skip("there is no C compiler here, or not Python's headers")
    watchers = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(path).is_absolute() for path in watchers):
        pytest.skip("the C compiler has no sanitizers here")
    module = tmp_path / "_jpeg_eighth.so"
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wsign-compare", "-Wpedantic", "-Werror"]
    watched = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = ROOT / "vehclass/_jpeg_eighth.c"
    made = [COMPILER, *strict, *watched, "-shared", "-fPIC", f"-I{INCLUDE}", str(source), "-o", str(module)]
    subprocess.run(made, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.jpegs", str(module), str(SEED), str(count)],
        cwd=ROOT,
        env=os.environ | {"LD_PRELOAD": ":".join(watchers), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["equal"] > count / 10
    assert not [word for word in found if word.startswith("wrong")], found
