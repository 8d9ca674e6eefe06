"""An image that crashes the decoder, or keeps it busy forever, costs that image and nothing else."""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT, SAMPLE, Answer
from vehclass.batch.hangs import Hangs
from vehclass.errors import DecodeError
from vehclass.imaging import decode
from vehclass.imaging_apart import Apart

SIZE = (64, 48)
# What a bug in a decoder would do, put into every Python that finds this on its path: at certain bytes Pillow's
# own opening crashes the process, or never comes back.
TRAP = """
import os, signal, threading, time
from PIL import Image
real = Image.open
def opened(file, *rest, **more):
    data = file.getvalue()
    if b"CRASH-HERE" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"HANG-HERE" in data:
        while True:
            time.sleep(0.01)
    return real(file, *rest, **more)
Image.open = opened
"""


def sha(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture
def trap(tmp_path: Path) -> str:
    """A PYTHONPATH on which the decoder is such a one."""
    place = tmp_path / "trap"
    place.mkdir()
    (place / "sitecustomize.py").write_text(TRAP)
    return f"{place}:{ROOT}"


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    """Twenty photos, and two that are not what they seem."""
    folder = tmp_path / "photos"
    folder.mkdir()
    files = sorted(drawn.rglob("*.jpg"))[:20]
    for number, file in enumerate(files):
        (folder / f"{number:02}.jpg").write_bytes(file.read_bytes())
    return folder


def spoil(folder: Path, name: str, how: bytes) -> None:
    (folder / name).write_bytes((folder / "00.jpg").read_bytes() + how)


def job(photos: Path, *words: str) -> list[str]:
    return ["classify-batch", "-c", str(photos), "-m", str(SAMPLE), "--store", "sqlite:///r.db", *words]


def test_a_crash_takes_the_run_along_and_the_next_one_goes_on_without_that_image(
    photos: Path, trap: str, vehclass: Callable[..., Answer]
) -> None:
    spoil(photos, "07-crash.jpg", b"CRASH-HERE")
    first = vehclass(*job(photos), PYTHONPATH=trap)
    assert first.code == -signal.SIGSEGV
    second = vehclass(*job(photos, "--json"), PYTHONPATH=trap)
    assert second.code == 3, second.err
    assert "processes of their own" in second.err
    assert [(one["code"], one["images"]) for one in second.json["failures"]] == [("decoder_crashed", 1)]
    assert (second.json["classified"], second.json["quarantined"]) == (20, 1)
    third = vehclass(*job(photos, "--json"), PYTHONPATH=trap)
    assert (third.code, third.json["new"]) == (0, 0)
    assert "processes of their own" not in third.err
    listed = vehclass("results", "list", "--failures", "--json", "--store", "sqlite:///r.db").json
    assert [(one["name"], one["code"]) for one in listed] == [("07-crash.jpg", "decoder_crashed")]
    assert "SIGSEGV" in listed[0]["message"]


def test_a_hang_ends_that_image_and_the_run_goes_on(photos: Path, trap: str, vehclass: Callable[..., Answer]) -> None:
    spoil(photos, "07-hang.jpg", b"HANG-HERE")
    spoil(photos, "13-hang.jpg", b"HANG-HERE")
    began = time.monotonic()
    done = vehclass(*job(photos, "--image-timeout", "2", "--json"), PYTHONPATH=trap)
    assert done.code == 3, done.err
    assert "beginning anew" in done.err
    assert (done.json["failures"], done.json["classified"] + done.json["failed"] <= 22) == (
        [{"stage": "decode", "code": "decode_timeout", "images": 2}],
        True,
    )
    assert time.monotonic() - began < 30
    runs = vehclass("runs", "list", "--json", "--store", "sqlite:///r.db").json
    assert [one["status"] for one in runs] == ["done", "interrupted"]
    assert vehclass(*job(photos, "--json"), PYTHONPATH=trap).json["new"] == 0


def test_a_night_with_such_images_ends_well(photos: Path, trap: str, vehclass: Callable[..., Answer]) -> None:
    """The scheduler's second try is the one that knows."""
    spoil(photos, "03-crash.jpg", b"CRASH-HERE")
    from tests.conftest import VEHCLASS, clean_environment

    words = [*VEHCLASS, "schedule", "--every", "6h", "--run-now", "--", *job(photos)[1:]]
    environment = clean_environment(PYTHONPATH=trap)
    process = subprocess.Popen(words, cwd=photos.parent, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "ended" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 143
    assert any("killed by SIGSEGV; trying again" in line for line in said), said
    assert "ended well: 20 classified, 1 failed" in said[-1]


class TestApart:
    @pytest.fixture
    def apart(self) -> Iterator[Apart]:
        made = Apart(seconds=20)
        yield made
        made.close()

    def test_the_pixels_are_the_same(self, apart: Apart, drawn: Path) -> None:
        for file in sorted(drawn.rglob("*.jpg"))[:4]:
            there, facts = apart.decode(file.read_bytes(), SIZE)
            here, same = decode(file.read_bytes(), SIZE)
            np.testing.assert_array_equal(there, here)
            assert facts == same

    def test_so_are_the_reasons(self, apart: Apart, badinput: Path) -> None:
        for file in sorted(badinput.iterdir()):
            if file.is_file() and file.stat().st_size < 2_000_000:
                assert outcome(apart.decode, file.read_bytes()) == outcome(decode, file.read_bytes()), file.name

    def test_threads_have_helpers_of_their_own(self, apart: Apart, drawn: Path) -> None:
        data = next(drawn.rglob("*.jpg")).read_bytes()
        seen: list[Any] = []

        def work() -> None:
            seen.extend(apart.decode(data, SIZE)[1] for _ in range(20))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(seen), len(set(seen)), len(apart._all)) == (60, 1, 3)

    def test_a_helper_that_was_killed_is_replaced(self, apart: Apart, drawn: Path) -> None:
        data = next(drawn.rglob("*.jpg")).read_bytes()
        apart.decode(data, SIZE)
        apart._all[0].kill()
        with pytest.raises(DecodeError, match="SIGKILL"):
            apart.decode(data, SIZE)
        apart.decode(data, SIZE)

    def test_helpers_end_with_the_run(self, drawn: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from vehclass.imaging_apart import Apart\n"
            f"a = Apart(); a.decode(Path({str(next(drawn.rglob('*.jpg')))!r}).read_bytes(), (8, 8))\n"
            "print(a._all[0].pid, flush=True); import os; os._exit(1)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
        helper = Path(f"/proc/{done.stdout.strip()}")
        for _ in range(50):
            if not helper.exists():
                return
            time.sleep(0.1)
        pytest.fail("the helper outlived its run")


def outcome(work: Any, data: bytes) -> Any:
    try:
        pixels, facts = work(data, SIZE)
    except DecodeError as error:
        return error.code, str(error), error.permanent
    return pixels.tobytes(), facts


class TestHangs:
    def test_only_what_takes_too_long_is_told(self) -> None:
        told = threading.Event()
        hangs = Hangs(lambda data, size: time.sleep(float(data)), 0.4)  # type: ignore[arg-type,return-value]
        with hangs.watched(told.set):
            for _ in range(6):
                hangs.decode(b"0.2", SIZE)
            assert not told.is_set()
            hangs.decode(b"0.9", SIZE)
        assert told.is_set()

    def test_nothing_is_left_of_an_image_that_is_done(self) -> None:
        """However the looks fall between the images: a thread that no longer decodes is not seen to hang."""
        told = threading.Event()
        hangs = Hangs(lambda data, size: None, 0.02)  # type: ignore[arg-type,return-value]
        with hangs.watched(told.set):
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                hangs.decode(b"", SIZE)
            assert hangs._looks == {}
            time.sleep(0.2)
        assert not told.is_set()

    def test_a_decoder_that_raises_is_watched_no_longer(self) -> None:
        told = threading.Event()

        def fail(data: bytes, size: Any) -> Any:
            raise DecodeError("odd", "odd")

        hangs = Hangs(fail, 0.2)
        with hangs.watched(told.set):
            with pytest.raises(DecodeError):
                hangs.decode(b"", SIZE)
            time.sleep(0.5)
        assert not told.is_set()
