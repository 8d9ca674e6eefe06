"""An image that crashes the decoder, or keeps it busy forever, costs that image and nothing else."""

import fcntl
import hashlib
import io
import os
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
from PIL import Image

from tests.conftest import ROOT, SAMPLE, Answer
from vehclass import imaging_apart
from vehclass.batch.batches import one_by_one
from vehclass.batch.hangs import Hangs
from vehclass.errors import DecodeError
from vehclass.imaging import Pixels, decode
from vehclass.imaging_apart import SLOTS_AT, Apart
from vehclass.records import ImageFacts

SIZE = (64, 48)
# What a bug in a decoder would do, put into every Python that finds this on its path: at certain bytes Pillow's
# own opening crashes the process, or never comes back.
TRAP = """
import os, signal, sys, threading, time
from PIL import Image
real = Image.open
if "vehclass.imaging_apart" in sys.orig_argv:
    print("a library says something", flush=True)
    if "NO-HELPERS" in os.environ:
        os._exit(9)
def opened(file, *rest, **more):
    data = file.getvalue()
    if b"CRASH-HERE" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"SLOW-HERE" in data:
        time.sleep(0.3)
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


def test_more_than_two_lanes_lose_such_images_and_nothing_else(
    photos: Path, trap: str, vehclass: Callable[..., Answer]
) -> None:
    spoil(photos, "07-crash.jpg", b"CRASH-HERE")
    spoil(photos, "13-hang.jpg", b"HANG-HERE")
    done = vehclass(*job(photos, "--threads", "3", "--image-timeout", "2", "--json"), PYTHONPATH=trap)
    assert done.code == 3, done.err
    assert {(one["code"], one["images"]) for one in done.json["failures"]} == {
        ("decoder_crashed", 1),
        ("decode_timeout", 1),
    }
    assert (done.json["classified"], done.json["quarantined"]) == (20, 2)
    assert "anew" not in done.err
    assert [one["status"] for one in vehclass("runs", "list", "--json", "--store", "sqlite:///r.db").json] == ["done"]


def test_helpers_that_do_not_start_are_no_fault_of_the_images(
    photos: Path, trap: str, vehclass: Callable[..., Answer]
) -> None:
    done = vehclass(*job(photos, "--threads", "3"), **{"PYTHONPATH": trap, "NO-HELPERS": "1"})
    assert done.code == 1
    assert "could not be started (exit code 9)" in done.err
    assert "--threads" in done.err
    after = vehclass(*job(photos, "--threads", "2", "--json"), **{"PYTHONPATH": trap, "NO-HELPERS": "1"}).json
    assert (after["new"], after["classified"]) == (20, 20)


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
        """Of more photos than are asked for at a time, and at another size after that."""
        photos = [file.read_bytes() for file in sorted(drawn.rglob("*.jpg"))[:20]] * 2
        for size in (SIZE, (300, 200)):
            answers = apart.decode(photos, size)
            for photo, answer in zip(photos, answers, strict=True):
                assert not isinstance(answer, DecodeError)
                here, facts = decode(photo, size)
                np.testing.assert_array_equal(answer[0], here)
                assert answer[1] == facts

    def test_a_picture_may_be_larger_than_what_is_asked_at_a_time(self, apart: Apart, drawn: Path) -> None:
        size, photo = (4000, 3000), next(drawn.rglob("*.jpg")).read_bytes()
        for answer in apart.decode([photo] * 2, size):
            assert not isinstance(answer, DecodeError)
            np.testing.assert_array_equal(answer[0], decode(photo, size)[0])

    def test_so_are_the_reasons(self, apart: Apart, badinput: Path, drawn: Path) -> None:
        """Each in its place among photos that are well."""
        files = [one for one in sorted(badinput.iterdir()) if one.is_file() and one.stat().st_size < 2_000_000]
        photos = [file.read_bytes() for file in [*files, *sorted(drawn.rglob("*.jpg"))[:9]]]
        photos.sort(key=len)
        found = [as_told(answer) for answer in apart.decode(photos, SIZE)]
        assert found == [as_told(next(one_by_one(decode)([photo], SIZE))) for photo in photos]
        assert {type(one[0]) for one in found} == {str, bytes}

    def test_nothing_is_asked_for_nothing(self, apart: Apart) -> None:
        assert list(apart.decode([], SIZE)) == []
        assert apart._all == []

    def test_threads_have_helpers_of_their_own(self, apart: Apart, drawn: Path) -> None:
        data = next(drawn.rglob("*.jpg")).read_bytes()
        seen: list[Any] = []

        def work() -> None:
            seen.extend(answer[1] for answer in apart.decode([data] * 20, SIZE) if not isinstance(answer, DecodeError))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(seen), len(set(seen)), len(apart._all)) == (60, 1, 3)

    def test_a_helper_that_was_killed_is_replaced_and_no_image_blamed(self, apart: Apart, drawn: Path) -> None:
        photos = [file.read_bytes() for file in sorted(drawn.rglob("*.jpg"))[:12]]
        found = []
        for number, answer in enumerate(apart.decode(photos * 4, SIZE)):
            found.append(as_told(answer))
            if number % 16 == 7:  # before the next are asked for
                apart._all[0].process.kill()
        assert found == [as_told(next(one_by_one(decode)([photo], SIZE))) for photo in photos] * 4

    @pytest.mark.parametrize(("how", "code"), [(b"CRASH-HERE", "decoder_crashed"), (b"HANG-HERE", "decode_timeout")])
    def test_who_is_to_blame_gets_the_blame(
        self, drawn: Path, trap: str, monkeypatch: pytest.MonkeyPatch, how: bytes, code: str
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", trap)
        photo = next(drawn.rglob("*.jpg")).read_bytes()
        apart = Apart(seconds=1)
        try:
            photos = [photo] * 20
            for place in (0, 5, 6, 19):
                photos[place] = photo + how
            found = [as_told(answer) for answer in apart.decode(photos, SIZE)]
        finally:
            apart.close()
        assert [place for place, one in enumerate(found) if one[0] == code] == [0, 5, 6, 19]
        assert sum(isinstance(one[0], bytes) for one in found) == 16

    def test_the_time_is_that_of_an_image_however_many_are_asked_for(
        self, drawn: Path, trap: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", trap)
        photo = next(drawn.rglob("*.jpg")).read_bytes() + b"SLOW-HERE"
        apart = Apart(seconds=1)
        try:
            assert not [one for one in apart.decode([photo] * 10, SIZE) if isinstance(one, DecodeError)]
        finally:
            apart.close()

    def test_one_that_was_done_after_all_is_not_blamed(
        self, apart: Apart, drawn: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor the one that came after it."""
        photos = [file.read_bytes() for file in sorted(drawn.rglob("*.jpg"))[:3]]
        list(apart.decode(photos, SIZE))
        wait, tries = imaging_apart._Helper.wait, []

        def late(helper: Any, count: int, seconds: float) -> None:
            wait(helper, count, seconds)
            if not tries:
                tries.append(count)
                helper.memory.done = 1
                raise imaging_apart._StillAt(0)

        monkeypatch.setattr(imaging_apart._Helper, "wait", late)
        found = [as_told(answer) for answer in apart.decode(photos, SIZE)]
        assert tries == [3]
        assert found == [as_told(next(one_by_one(decode)([photo], SIZE))) for photo in photos]

    def test_helpers_leave_nothing_behind(self, apart: Apart, drawn: Path) -> None:
        """No process, no open file, however many of them were killed."""
        photo = next(drawn.rglob("*.jpg")).read_bytes()
        list(apart.decode([photo], SIZE))
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            apart._all[0].process.kill()
            list(apart.decode([photo], SIZE))
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        process = apart._all[0].process
        apart.close()
        assert process.returncode is not None
        # Two ends of pipes, the memory and its mapping, the giants' turn.
        assert len(list(Path("/proc/self/fd").iterdir())) == before - 5

    def test_giants_are_decoded_one_at_a_time(self, apart: Apart, drawn: Path) -> None:
        """Whoever else is at one: here this very process says that it is."""
        small = next(drawn.rglob("*.jpg")).read_bytes()
        file = io.BytesIO()
        Image.new("L", (5_200, 5_000)).save(file, "JPEG")
        done: list[str] = []

        def work(name: str, photo: bytes) -> None:
            assert not isinstance(next(apart.decode([photo], SIZE)), DecodeError)
            done.append(name)

        work("small", small)
        done.clear()
        fcntl.lockf(apart._giants or -1, fcntl.LOCK_EX)
        giant = threading.Thread(target=work, args=("giant", file.getvalue()))
        giant.start()
        until = time.monotonic() + 20
        while not any(helper.memory.waits for helper in apart._all):
            assert time.monotonic() < until
            time.sleep(0.01)
        work("small", small)
        giant.join(0.5)
        assert done == ["small"]
        fcntl.lockf(apart._giants or -1, fcntl.LOCK_UN)
        giant.join(20)
        assert done == ["small", "giant"]

    def test_to_wait_for_ones_turn_is_not_to_hang(self) -> None:
        file = io.BytesIO()
        Image.new("L", (5_200, 5_000)).save(file, "JPEG")
        apart, found = Apart(seconds=1), list[Any]()
        try:
            list(apart.decode([b""], SIZE))  # another thread's helper, and the giants' turn
            fcntl.lockf(apart._giants or -1, fcntl.LOCK_EX)
            giant = threading.Thread(target=lambda: found.extend(apart.decode([file.getvalue()], SIZE)))
            giant.start()
            giant.join(3)
            assert giant.is_alive()
            fcntl.lockf(apart._giants or -1, fcntl.LOCK_UN)
            giant.join(20)
        finally:
            apart.close()
        assert [isinstance(one, DecodeError) for one in found] == [False]

    def test_what_helpers_have_of_the_cores_is_known(self, apart: Apart, drawn: Path) -> None:
        photos = [file.read_bytes() for file in sorted(drawn.rglob("*.jpg"))[:20]] * 10
        before = os.times()
        list(apart.decode(photos, SIZE))
        told = apart.cpu_seconds()
        apart.close()
        after = os.times()
        took = after.children_user + after.children_system - before.children_user - before.children_system
        assert 0.5 * took < told <= took + 0.05
        assert apart.cpu_seconds() == pytest.approx(told, abs=0.05)

    def test_a_helper_that_lies_is_not_believed(self, apart: Apart, drawn: Path) -> None:
        photo = next(drawn.rglob("*.jpg")).read_bytes()
        list(apart.decode([photo], SIZE))
        memory = apart._all[0].memory
        true = {"width": 10, "height": 10, "format": "jpeg", "sha256": "0" * 64}
        memory.say(0, true)
        assert not isinstance(memory.answer(0, SIZE, ("jpeg",), 100), DecodeError)
        no_facts = [{}, {"width": 2**40}, {"width": "9" * 99}, {"height": -1}, {"height": 11}, {"width": True}]
        no_facts += [{"format": "tiff"}, {"format": []}, {"sha256": "x"}, {"sha256": None}, {"width": None}]
        no_reasons = [{"code": code, "message": "", "permanent": True} for code in (1, "", "a\0b", "x" * 41)]
        no_reasons += [
            {"code": "odd", "message": message, "permanent": True} for message in (None, 7, ["x"], "x" * 501)
        ]
        lies = [true | lie for lie in no_facts[1:]] + no_reasons + [[], "x" * 3000, None, 7, {"code": "odd"}, {}]
        for said in lies:
            memory.say(0, said)
            answer = memory.answer(0, SIZE, ("jpeg",), 100)
            assert isinstance(answer, DecodeError), said
            assert answer.code == "decoder_crashed"
        memory._mapped[SLOTS_AT : SLOTS_AT + 4] = b"\xff" * 4  # a length beyond the slot
        assert isinstance(memory.answer(0, SIZE, ("jpeg",), 100), DecodeError)
        memory.cpu_seconds = float("nan")
        assert apart.cpu_seconds() == 0

    @pytest.mark.parametrize("answer", ["QUESTION", "b'\\n' * 8"])
    def test_an_answer_to_something_else_is_none(self, answer: str) -> None:
        """Nothing is done where all should be, or the question is another: not a loop, and no image's pixels for another's."""
        code = f"""if True:
            import os, struct, sys
            answers, asked = int(sys.argv[-1]), sys.stdin.buffer
            os.write(answers, bytes(8))
            while head := asked.read(20):
                QUESTION, count = head[:8], struct.unpack("<I", head[16:])[0]
                for length in struct.unpack(f"<{{count}}Q", asked.read(8 * count)):
                    asked.read(length)
                os.write(answers, {answer})
        """
        apart = Apart(seconds=5)
        apart._command[1:] = ["-c", code]
        try:
            found = [as_told(one) for one in apart.decode([b"photo"] * 3, SIZE)]
        finally:
            apart.close()
        assert [one[0] for one in found] == ["decoder_crashed"] * 3

    def test_a_helper_that_may_not_have_the_memory_of_its_owner(self, apart: Apart) -> None:
        """What is mapped cannot be cut off, which would be the end of both."""
        list(apart.decode([b""], SIZE))
        with pytest.raises(OSError, match="permitted"):
            os.ftruncate(apart._all[0]._files[0], 0)

    def test_helpers_know_no_secrets(self, apart: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_STORAGE_KEY", "canary-of-a-key")
        monkeypatch.setenv("VEHCLASS_STORE", "mssql://user:canary@server/db")
        list(apart.decode([b""], SIZE))
        environment = Path(f"/proc/{apart._all[0].process.pid}/environ").read_bytes()
        assert b"canary" not in environment
        assert b"PATH=" in environment

    @pytest.mark.parametrize("how", [b"", b"HANG-HERE"])
    def test_helpers_end_with_the_run(self, drawn: Path, trap: str, how: bytes) -> None:
        """Also one that is at an image which never ends."""
        photo = next(drawn.rglob("*.jpg"))
        code = (
            "import os, sys, threading, time; from pathlib import Path; from vehclass.imaging_apart import Apart\n"
            f"a = Apart(); list(a.decode([b''], (8, 8))); photo = Path({str(photo)!r}).read_bytes() + {how!r}\n"
            "b = Apart(); threading.Thread(target=lambda: list(b.decode([photo], (8, 8)))).start(); time.sleep(2)\n"
            "print(b._all[0].process.pid, flush=True); os._exit(1)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": trap},
            timeout=30,
        )
        assert done.stdout, done.stderr
        helper = Path(f"/proc/{int(done.stdout)}/stat")
        for _ in range(50):
            if not helper.exists() or helper.read_text().rpartition(")")[2].split()[0] == "Z":
                return
            time.sleep(0.1)
        pytest.fail("the helper outlived its run")


def as_told(answer: tuple[Pixels, ImageFacts] | DecodeError) -> tuple[Any, ...]:
    if isinstance(answer, DecodeError):
        return answer.code, str(answer), answer.permanent
    return answer[0].tobytes(), answer[1]


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
