"""Killed at any moment, nothing is lost, nothing is doubled, nothing is different."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SAMPLE, VEHCLASS, Cosmos, clean_environment, draw
from vehclass import holders
from vehclass.stores import open_store
from vehclass.stores.options import StoreOptions

SEED = 20261120
PHOTOS = 500

# Everything that a run leaves behind, but for when, by whom, and in which order it was written.
EVERYTHING = [
    "SELECT name, source, etag, size, modified_at, width, height, format, sha256 FROM image ORDER BY name",
    "SELECT i.name, o.etag, o.status, o.stage, o.code, o.message, o.attempts"
    " FROM outcome o JOIN image i USING (image_seq) ORDER BY i.name",
    "SELECT name, model, task, label, round(probability, 6), needs_review FROM image_prediction ORDER BY name, task",
    "SELECT name, model, task, label, round(probability, 6) FROM image_probability ORDER BY name, task, label",
]


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 photos, one in fifty of them broken."""
    folder = tmp_path_factory.mktemp("kill")
    drawn = sorted((draw(folder / "drawn", "--count", "20", "--seed", "9", "--size", "320x240") / "photos").iterdir())
    uploads = folder / "uploads"
    uploads.mkdir()
    for number in range(PHOTOS):
        if number % 50 == 7:
            (uploads / f"{number:04d}.jpg").write_bytes(drawn[number % 20].read_bytes()[:900])
        else:
            shutil.copy(drawn[number % 20], uploads / f"{number:04d}.jpg")
    return uploads


def command(container: Path, store: Path | str) -> list[str]:
    # Small batches on one thread: more moments at which to be killed.
    options = ["--threads", "1", "--batch-size", "4", "--json"]
    return [*VEHCLASS, "classify-batch", "-c", str(container), "-m", str(SAMPLE), "--store", str(store), *options]


def start(container: Path, store: Path | str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(container, store),
        # A signal in the middle of an import leaves Python's own file of it open, which is no fault of ours to warn of.
        env=clean_environment(PYTHONWARNINGS="", **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(store: Path) -> list[list[Any]]:
    with sqlite3.connect(store) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = [opened.execute(query).fetchall() for query in EVERYTHING]
    opened.close()
    return found


@pytest.fixture(scope="module")
def undisturbed(container: Path) -> list[list[Any]]:
    store = container.parent / "undisturbed.db"
    done = subprocess.run(
        command(container, store), env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    found = contents(store)
    assert [len(rows) for rows in found] == [500, 500, 490 * 3, 490 * 10]
    return found


def killed_to_the_end(chance: random.Random, start_again: Callable[[], "subprocess.Popen[str]"]) -> int:
    """Starts a run and kills it at a random moment, again and again, until one comes to its end; how many were killed.

    Each is given a little longer than the last, since on a busy machine the first moments may all lie in the start.
    """
    killed = 0
    while True:
        process = start_again()
        try:
            _, err = process.communicate(timeout=chance.uniform(0.2, 1.6) + 0.05 * killed)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            continue
        assert process.returncode in (0, 3), err
        return killed


def kill_until(kills: int, container: Path, undisturbed: list[list[Any]], folder: Path) -> dict[str, int]:
    """Rounds of killing until the work is done, until there were so many kills; each round is compared."""
    chance = random.Random(SEED)
    killed = rounds = 0
    while killed < kills:
        store = folder / f"{rounds}.db"
        killed += killed_to_the_end(chance, lambda store=store: start(container, store))  # type: ignore[misc]  # bound now
        assert contents(store) == undisturbed
        with sqlite3.connect(store) as opened:
            statuses = [status for (status,) in opened.execute("SELECT status FROM run ORDER BY rowid")]
        opened.close()
        assert statuses[-1] == "done"
        assert set(statuses[:-1]) <= {"interrupted", "done"}  # killed on its way out
        rounds += 1
        store.unlink()
    return {"kills": killed, "rounds": rounds}


def kill_with_cosmos(kills: int, container: Path, cosmos: Cosmos) -> None:
    def held(url: str) -> list[tuple[object, ...]]:
        store = open_store(url, options=StoreOptions(cosmos_key=cosmos.KEY))
        found = [one for page in store.saved() for one in page]
        store.close()
        return sorted((one.key, one.etag, one.status, one.attempts, repr(one.outcome)) for one in found)

    def run(url: str) -> "subprocess.Popen[str]":
        return start(container, url, AZURE_COSMOS_KEY=cosmos.KEY)

    whole = cosmos.url(f"whole-{kills}")  # one account serves several tests
    process = run(whole)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    expected = held(whole)
    assert len(expected) == PHOTOS
    chance = random.Random(SEED)
    killed = rounds = 0
    while killed < kills:
        url = cosmos.url(f"kill-{kills}-{rounds}")
        killed += killed_to_the_end(chance, lambda url=url: run(url))  # type: ignore[misc]  # bound now
        assert held(url) == expected
        rounds += 1
    print(json.dumps({"seed": SEED, "kills": killed, "rounds": rounds}))


def test_sigkill_15_times_with_cosmos(container: Path, cosmos: Cosmos) -> None:
    kill_with_cosmos(15, container, cosmos)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sigkill_50_times_with_cosmos(container: Path, cosmos: Cosmos) -> None:
    kill_with_cosmos(50, container, cosmos)


def test_sigkill_12_times(container: Path, undisturbed: list[list[Any]], tmp_path: Path) -> None:
    print(kill_until(12, container, undisturbed, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sigkill_300_times(container: Path, undisturbed: list[list[Any]], tmp_path: Path) -> None:
    print(json.dumps({"seed": SEED, **kill_until(300, container, undisturbed, tmp_path)}))


@pytest.fixture
def moments() -> Iterator[float]:
    chance = random.Random(SEED)
    return (chance.uniform(0.5, 1.4) for _ in iter(int, 1))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_what_is_in_hand(
    number: signal.Signals,
    code: int,
    container: Path,
    undisturbed: list[list[Any]],
    tmp_path: Path,
    moments: Iterator[float],
) -> None:
    stopped = rounds = 0
    while stopped < 3:
        store = tmp_path / f"{rounds}.db"
        rounds += 1
        while True:
            process = start(container, store)
            time.sleep(next(moments))
            process.send_signal(number)
            began = time.monotonic()
            _, err = process.communicate(timeout=30)
            assert time.monotonic() - began < 20
            assert "Traceback" not in err
            if process.returncode in (0, 3):
                break
            assert process.returncode == code, err
            assert f"Stopped by {number.name}" in err
            stopped += 1
        assert contents(store) == undisturbed
        with sqlite3.connect(store) as opened:
            rows = opened.execute("SELECT status, exit_code FROM run ORDER BY rowid").fetchall()
        opened.close()
        assert set(rows[:-1]) <= {("interrupted", code), ("done", 0), ("done", 3)}


def test_two_signals_in_a_row(
    container: Path, undisturbed: list[list[Any]], tmp_path: Path, moments: Iterator[float]
) -> None:
    store = tmp_path / "r.db"
    for _ in range(6):
        process = start(container, store)
        time.sleep(next(moments))
        process.send_signal(signal.SIGINT)
        time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode in (130, 143, 0, 3), err
        assert "Traceback" not in err
    done = subprocess.run(
        command(container, store), env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3)
    assert contents(store) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_signals_at_200_random_moments(container: Path, undisturbed: list[list[Any]], tmp_path: Path) -> None:
    """One signal or two, at any moment from the start on; how long it took to leave, at most and for 99 of 100."""
    chance = random.Random(SEED)
    took: list[float] = []
    codes: dict[int, int] = {}
    rounds = 0
    while len(took) < 200:
        store = tmp_path / f"{rounds}.db"
        rounds += 1
        ended = False
        while not ended:
            process = start(container, store)
            time.sleep(chance.uniform(0.4, 1.6))
            for _ in range(chance.choice((1, 2))):
                process.send_signal(chance.choice((signal.SIGTERM, signal.SIGINT)))
                time.sleep(chance.uniform(0, 0.05))
            began = time.monotonic()
            _, err = process.communicate(timeout=30)
            took.append(time.monotonic() - began)
            assert "Traceback" not in err
            codes[process.returncode] = codes.get(process.returncode, 0) + 1
            # Before Python is up, or while it leaves, the system ends it.
            assert process.returncode in (0, 3, 130, 143, -signal.SIGTERM, -signal.SIGINT), err
            ended = process.returncode in (0, 3)
        assert contents(store) == undisturbed
    took.sort()
    assert took[-1] < 20
    said = {"signals": len(took), "rounds": rounds, "p99": took[int(0.99 * len(took))], "most": took[-1]}
    print(json.dumps({"seed": SEED, **said, "codes": codes}))


def test_a_signal_before_the_work_begins(container: Path, tmp_path: Path) -> None:
    for delay in (0.05, 0.15, 0.3):
        process = start(container, tmp_path / "r.db")
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        # Python itself may not be up yet, in which case the system ends it.
        assert process.returncode in (143, -signal.SIGTERM), err
        assert "Traceback" not in err


def test_a_signal_that_comes_where_python_drops_exceptions_is_heard(tmp_path: Path) -> None:
    """As in a weak reference's callback, of which Python's import system has one: said without a traceback, and obeyed."""
    code = (
        "import os, signal, sys, time, weakref\n"
        "import vehclass.cli.app as app\n"
        "class Thing: pass\n"
        "def work():\n"
        "    thing = Thing()\n"
        "    kept = weakref.ref(thing, lambda ref: (os.kill(os.getpid(), signal.SIGTERM), [None for _ in range(100)]))\n"
        "    del thing\n"
        "    time.sleep(5); print('it went on', flush=True)\n"
        "app.app = work\n"
        "from vehclass.cli import main; main()"
    )
    done = subprocess.run(
        [VEHCLASS[0], "-c", code], env=clean_environment(), capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (143, "", False), done.stderr
    assert "Stopped by SIGTERM" in done.stderr


@pytest.mark.parametrize("error", ["ImportError('initialization failed')", "UsageError(reason='odd')"])
def test_a_signal_that_comes_out_as_another_error_is_still_a_signal(error: str) -> None:
    """As it does where it comes while native code is being loaded."""
    code = (
        "import os, signal\n"
        "import vehclass.cli.app as app\n"
        "from vehclass.errors import Interrupted, UsageError\n"
        "def work():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except Interrupted:\n"
        f"        raise {error} from None\n"
        "app.app = work\n"
        "from vehclass.cli import main; main()"
    )
    done = subprocess.run(
        [VEHCLASS[0], "-c", code], env=clean_environment(), capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (143, "vehclass: Stopped by SIGTERM. Nothing was written.\n")


def test_a_dry_run_that_is_stopped_claims_nothing(container: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from vehclass.sources.folder import FolderSource\n"
        "original = FolderSource.pages\n"
        "def slow(self, prefix=''):\n"
        "    yield from original(self, prefix); print('listing', file=sys.stderr, flush=True); time.sleep(3)\n"
        "    yield from original(self, prefix)\n"
        "FolderSource.pages = slow\n"
        f"sys.argv = ['vehclass', 'classify-batch', '-c', {str(container)!r}, '-m', {str(SAMPLE)!r}, '--dry-run']\n"
        "from vehclass.cli import main; main()"
    )
    process = subprocess.Popen(
        [VEHCLASS[0], "-c", code],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "listing\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, ""), err
    assert "Stopped by SIGTERM" in err


def test_a_killed_child_that_nobody_waited_for_holds_nothing() -> None:
    child = subprocess.Popen(
        [VEHCLASS[0], "-c", "import time; print('up', flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    holder = holders.identity().split(" ")
    holder[1:3] = [str(child.pid), holders.start_ticks(child.pid)]
    assert not holders.is_gone(" ".join(holder))
    child.kill()
    time.sleep(0.2)
    assert holders.is_gone(" ".join(holder))
    child.communicate()
    assert not holders.is_gone("elsewhere " + " ".join(holder[1:]))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_a_killed_run_leaves_a_lease_that_the_next_one_takes_at_once(container: Path, tmp_path: Path) -> None:
    store = tmp_path / "r.db"
    process = start(container, store)
    while not (store.exists() and _saved(store)):
        time.sleep(0.05)
    process.kill()
    process.communicate()
    began = time.monotonic()
    done = subprocess.run(
        command(container, store), env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    assert time.monotonic() - began < 60


def _saved(store: Path) -> bool:
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as opened:
            found = opened.execute("SELECT count(*) FROM outcome").fetchone()[0]
        opened.close()
    except sqlite3.Error:
        return False
    return bool(found)
