"""Whole runs in bad weather, checked against a ledger of what was put in: nothing lost, doubled or stale."""

import random
import re
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLE, Answer, Azurite, clean_environment
from tests.faults import Fault, FaultProxy
from tests.ledger import Ledger
from tests.standin_run import label_of

SEED = 20261121


def test_a_ledger_finds_what_is_wrong(drawn: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    ledger, photos = Ledger(), tmp_path / "photos"
    photos.mkdir()
    for number, file in enumerate(sorted(drawn.rglob("*.jpg"))[:6]):
        (photos / f"{number}.jpg").write_bytes(ledger.put(f"{number}.jpg", file.read_bytes()))
    vehclass("classify-batch", "-c", photos, "-m", SAMPLE, "--store", "sqlite:///r.db")
    assert ledger.faults_of(tmp_path / "r.db") == []
    ledger.put("1.jpg", b"newer")
    ledger.put("6.jpg", b"never looked at")
    del ledger.content["2.jpg"]
    with closing(sqlite3.connect(tmp_path / "r.db")) as db, db:
        db.execute(
            "DELETE FROM probability WHERE image_seq = (SELECT image_seq FROM image WHERE name = '3.jpg') AND label_seq = 1"
        )
        db.execute(
            "UPDATE outcome SET status = 'failed', stage = 'read' WHERE image_seq = (SELECT image_seq FROM image WHERE name = '4.jpg')"
        )
    found = ledger.faults_of(tmp_path / "r.db")
    assert sorted(text.split(" ")[0] for text in found) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "6.jpg"]


class Weather:
    """Trouble for a share of the reads and listings, drawn from a seed; says whether waits were kept."""

    def __init__(self, share: float, seed: int) -> None:
        self.share = share
        self.chance = random.Random(seed)
        self.counts: dict[str, int] = defaultdict(int)
        self.may_come: dict[str, float] = {}
        self.too_soon: list[str] = []

    def __call__(self, method: str, path: str) -> Fault | None:
        # A request that is repeated has a path of its own only by its name.
        key, moment = re.sub(r"&?(se|sig|st)=[^&]*", "", path), time.monotonic()
        if moment < self.may_come.pop(key, 0.0):
            self.too_soon.append(key)
        if self.chance.random() >= self.share:
            return None
        kind = self.chance.choice(["busy", "500", "503", "reset", "cut", "flipped", "stall"])
        self.counts[kind] += 1
        match kind:
            case "busy":
                self.may_come[key] = moment + 0.3
                return Fault(status=429, headers={"Retry-After": "0.3"})
            case "500":
                return Fault(status=500, error_code="InternalError")
            case "503":
                return Fault(status=503, error_code="ServerBusy")
            case "reset":
                return Fault(drop_reply=True)
            case "cut":
                return Fault(cut_after=200)
            case "flipped" if ".jpg" in path:
                return Fault(
                    change_body=lambda body: body[:50] + bytes([body[50] ^ 1]) + body[51:] if len(body) > 50 else body
                )
        return Fault(delay=0.5)


def storm(count: int, azurite: Azurite, drawn: Path, folder: Path, vehclass: Callable[..., Answer]) -> Weather:
    """A container behind a proxy that spoils three requests of ten; as many runs as it takes."""
    name, ledger = f"storm{time.monotonic_ns()}", Ledger()
    client = azurite.container(name)
    photos = [file.read_bytes() for file in sorted(drawn.rglob("*.jpg"))[:20]]
    for number in range(count):
        data = photos[number % len(photos)] + f"{number}".encode()
        client.upload_blob(f"{number:04}.jpg", ledger.put(f"{number:04}.jpg", data))
    weather = Weather(0.3, SEED)
    with FaultProxy(azurite.port).running() as proxy:
        proxy.rule = weather
        through = replace(azurite, port=proxy.port).connection_string
        for _ in range(6):
            done = vehclass(
                *("classify-batch", "-c", name, "-m", SAMPLE, "--store", "sqlite:///r.db", "--json"),
                AZURE_STORAGE_CONNECTION_STRING=through,
                timeout=600,
            )
            assert done.code in (0, 3, 5), done.err
            if done.code == 0:
                break
    assert done.code == 0
    assert ledger.faults_of(folder / "r.db") == []
    return weather


def test_three_requests_of_ten_go_wrong(
    azurite: Azurite, drawn: Path, tmp_path: Path, vehclass: Callable[..., Answer]
) -> None:
    weather = storm(120, azurite, drawn, tmp_path, vehclass)
    assert min(weather.counts[kind] for kind in ("busy", "500", "503", "reset", "cut", "flipped", "stall")) >= 1
    assert weather.too_soon == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_of_thousands_of_requests_go_wrong(
    azurite: Azurite, drawn: Path, tmp_path: Path, vehclass: Callable[..., Answer]
) -> None:
    weather = storm(3_000, azurite, drawn, tmp_path, vehclass)
    assert sum(weather.counts.values()) >= 1_000
    assert weather.too_soon == []


def kills(times: int, folder: Path, seed: int) -> int:
    """Kills a run again and again while photos come and are replaced; returns how many of them were at work when killed."""
    chance, ledger = random.Random(seed), Ledger()
    photos, store = folder / "photos", folder / "r.db"
    photos.mkdir()
    words = [sys.executable, str(ROOT / "tests/standin_run.py"), str(photos), str(store)]

    def put(name: str) -> None:
        (photos / name).write_bytes(ledger.put(name, chance.randbytes(64)))

    for number in range(400):
        put(f"{number:05}.jpg")
    # How long such a run takes on this machine, so that most are killed while they are at it: as long as the last that ended.
    began = time.monotonic()
    subprocess.run([*words[:-1], str(folder / "tried.db")], cwd=folder, env=clean_environment(), check=True)
    whole = time.monotonic() - began
    at_work = 0
    for number in range(times):
        began = time.monotonic()
        process = subprocess.Popen(words, cwd=folder, env=clean_environment(), stderr=subprocess.DEVNULL)
        try:
            assert process.wait(whole * chance.uniform(0.3, 1.0)) == 0
            whole = time.monotonic() - began
        except subprocess.TimeoutExpired:
            at_work += 1
            process.kill()
            process.wait()
        for fresh in range(50):
            put(f"{400 + 50 * number + fresh:05}.jpg")
        for name in chance.sample(sorted(ledger.content), 300):
            put(name)
    done = subprocess.run(words, cwd=folder, env=clean_environment(), check=False, timeout=300)
    assert done.returncode == 0
    assert ledger.faults_of(store) == []
    with closing(sqlite3.connect(store)) as db:
        said = dict(db.execute("SELECT name, label FROM image_prediction").fetchall())
    assert said == {name: label_of((photos / name).read_bytes()) for name in ledger.content}
    return at_work


def writers(processes: int, seconds: float, folder: Path) -> int:
    """Several runs write into one SQLite file, each of a container of its own, again and again; returns how many runs."""
    chance, store, end = random.Random(SEED), folder / "r.db", time.monotonic() + seconds
    ledgers = [Ledger() for _ in range(processes)]
    running: dict[int, subprocess.Popen[bytes]] = {}
    runs = 0
    while time.monotonic() < end or running:
        for number in range(processes):
            process = running.get(number)
            if process is not None and process.poll() is not None:
                assert process.returncode == 0
                del running[number]
            if number not in running and time.monotonic() < end:
                photos = folder / f"{number}"
                photos.mkdir(exist_ok=True)
                for _ in range(50):
                    name = f"{number}-{chance.randrange(2_000):05}.jpg"
                    (photos / name).write_bytes(ledgers[number].put(name, chance.randbytes(64)))
                words = [sys.executable, str(ROOT / "tests/standin_run.py"), str(photos), str(store)]
                running[number] = subprocess.Popen(words, cwd=folder, env=clean_environment())
                runs += 1
        time.sleep(0.02)
    together = Ledger({name: digest for ledger in ledgers for name, digest in ledger.content.items()})
    assert together.faults_of(store) == []
    return runs


def test_several_writers_in_one_file(tmp_path: Path) -> None:
    assert writers(4, 4, tmp_path) >= 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_writers_in_one_file_for_ten_minutes(tmp_path: Path) -> None:
    print(writers(8, 600, tmp_path))


def test_sigkill_25_times_with_a_stand_in(tmp_path: Path) -> None:
    assert kills(25, tmp_path, SEED) > 12


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sigkill_1000_times_with_a_stand_in(tmp_path: Path) -> None:
    assert sum(kills(100, (tmp_path / f"{n}"), SEED + n) for n in range(10) if not (tmp_path / f"{n}").mkdir()) > 600
