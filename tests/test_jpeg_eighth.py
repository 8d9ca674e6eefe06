"""The C decoder gives, to the last bit, what libjpeg gives at an eighth, or leaves the photo to it."""

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
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
HEADERS = sysconfig.get_paths()["include"]


def decode(data: bytes, width: int, height: int) -> bytes | None:
    if jpeg_eighth.decode_eighth is None:
        pytest.skip("vehclass was installed where there was no C compiler")
    return jpeg_eighth.decode_eighth(data, width, height)


def drawn(mode: str = "RGB", **options: object) -> tuple[bytes, int, int]:
    """A photo's bytes and its sides."""
    image = jpegs.picture(random.Random(SEED), "L" if mode == "L" else "RGB").convert(mode)
    return jpegs.encoded(image, **options), *image.size


def test_it_is_compiled_where_there_is_a_compiler() -> None:
    if COMPILER is None or not (Path(HEADERS) / "Python.h").exists():
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
    if COMPILER is None or not (Path(HEADERS) / "Python.h").exists():
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
    made = [COMPILER, *strict, *watched, "-shared", "-fPIC", f"-I{HEADERS}", str(source), "-o", str(module)]
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
