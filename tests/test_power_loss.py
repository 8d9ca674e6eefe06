"""The SQLite store when the power goes, when the disk reports errors, and when it is full."""

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.conftest import SAMPLE, VEHCLASS, clean_environment, draw
from tests.failing_disk import Disk, Event, Fault, Platter, crash_images, runs_here
from tests.test_kill import EVERYTHING, contents
from tests.test_stores import MODEL, TRUNCATED, UNREADABLE, begin, classified, failed, ref
from vehclass.errors import StoreError, VehclassError
from vehclass.records import ImageRef, Outcome, RunEnd, RunTicket, ScheduleNote
from vehclass.stores import Store, open_store
from vehclass.stores.queries import migrations

SEED = 20261120
OTHER = replace(MODEL, version="def456")

needs_disk = pytest.mark.skipif(not runs_here(), reason="this Python's SQLite takes no disk of ours")

# What a run without a disturbance tells SQLite to do, and how each may fail.
FAILURES = {
    "open": [sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR],
    "read": [sqlite3.SQLITE_IOERR_READ],
    "write": [sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_FULL],
    "truncate": [sqlite3.SQLITE_IOERR_TRUNCATE],
    "sync": [sqlite3.SQLITE_IOERR_FSYNC],
    "size": [sqlite3.SQLITE_IOERR_FSTAT],
    "delete": [sqlite3.SQLITE_IOERR_DELETE],
    "sync folder": [sqlite3.SQLITE_IOERR_DIR_FSYNC],
}
MAY_BE_TOLD: dict[int, set[str | None]] = {
    **{code: {"the disk reports an error"} for codes in FAILURES.values() for code in codes},
    sqlite3.SQLITE_FULL: {"the disk is full"},
    sqlite3.SQLITE_CANTOPEN: {"the file cannot be opened or made there"},
}


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where the system has such a folder: it matters what a disk is told, not what it does then."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


# --- what a run does with a store ---


def photos(count: int, replaced: Sequence[int] = ()) -> list[ImageRef]:
    """A listing, long names among it, some photos with other content than before."""
    return [ref(f"{n:04d}{'-long' * (n % 9)}.jpg", "2" if n in replaced else "1") for n in range(count)]


def outcome(one: ImageRef) -> Outcome:
    """What becomes of a photo: most are classified, some are broken, some could not be read this time."""
    number = int(one.name[:4])
    if number % 11 == 3:
        return failed(one.name, TRUNCATED, one.etag)
    if number % 11 == 5:
        return failed(one.name, etag=one.etag)
    return classified(one.name, one.etag, 0.5 + number % 7 / 20)


@dataclass
class Run:
    """A run as `classify-batch` makes it; `acknowledged` is told of each thing that the store has taken."""

    store: Store
    run_id: str
    acknowledged: Callable[[str], None] = lambda what: None
    model: Any = MODEL
    batch: int = 12

    def over(
        self, listing: Sequence[ImageRef], decide: Callable[[ImageRef], Outcome] = outcome, *, again: bool = False
    ) -> None:
        """Goes over a listing; also over what had been given up, where it is to be tried again."""
        store, model = self.store, self.model
        ticket = self._did("run", begin(store, self.run_id, model))
        self._did("schedule", store.beat_schedule(ScheduleNote("nightly", "at 23:00", "...", "here 1", None)))
        mark = model.version
        self._did("mark", store.open_mark("photos", mark, ticket))
        new = store.unseen(listing, model, retry_failed=again)
        for start in range(0, len(new), self.batch):
            self._save([decide(one) for one in new[start : start + self.batch]], ticket)
            self._did("lease", store.renew_lease(ticket, 60))
        self._did("mark", store.leave_mark(mark, f'{{"by": "{self.run_id}"}}', ticket))
        end = RunEnd("done", 0, None, len(listing), len(new))
        self._did("end", store.end_run(self.run_id, end))
        self._did("lease", store.free_lease(ticket))

    def _save(self, outcomes: list[Outcome], ticket: RunTicket) -> None:
        self._did("save", self.store.save(outcomes, self.model, ticket, max_attempts=3))

    def _did(self, what: str, answer: Any) -> Any:
        self.acknowledged(what)
        return answer


def mended(one: ImageRef) -> Outcome:
    """What becomes of a photo once all of them can be read again."""
    return classified(one.name, one.etag) if outcome(one).failure == UNREADABLE else outcome(one)


Acknowledged = Callable[[str], None]


FEW = photos(30)


def one_night(store: Store, acknowledged: Acknowledged) -> None:
    """A run over a few photos."""
    Run(store, "run-1", acknowledged, batch=8).over(FEW)


def nights(store: Store, acknowledged: Acknowledged) -> None:
    """Three nights and another model: new photos, replaced ones, failures that are tried again until given up."""
    Run(store, "run-1", acknowledged).over(photos(60))
    Run(store, "run-2", acknowledged).over(photos(75, replaced=range(0, 60, 4)))
    Run(store, "run-3", acknowledged).over(photos(80, replaced=range(0, 60, 3)))
    Run(store, "run-4", acknowledged, OTHER, batch=40).over(photos(80, replaced=range(0, 60, 3)))


LAST = photos(80, replaced=range(0, 60, 3))


def finish(store: Store, acknowledged: Acknowledged = lambda what: None, listing: Sequence[ImageRef] = LAST) -> None:
    """What is run after whatever went wrong: everything is to be there at the end, and once."""
    Run(store, "run-8", acknowledged, MODEL).over(listing, mended, again=True)
    Run(store, "run-9", acknowledged, OTHER).over(listing, mended, again=True)


def opened(folder: Path) -> Store:
    return open_store(f"sqlite:///{folder}/r.db", create=True)


def everything(path: Path) -> list[list[Any]]:
    """What a store is compared by: all but times, runs, attempts and the order of writing."""
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [sorted(database.execute(query.replace(", o.attempts", "")), key=repr) for query in EVERYTHING]


def undisturbed(folder: Path, listing: Sequence[ImageRef]) -> list[list[Any]]:
    """What a store holds to which nothing happened."""
    folder.mkdir()
    with closing(opened(folder)) as store:
        finish(store, listing=listing)
    found = everything(folder / "r.db")
    assert [len(rows) for rows in found[:2]] == [len(listing), 2 * len(listing)]
    return found


# --- what a disk was told, and what may be found on it ---


@dataclass(frozen=True)
class Recording:
    """What the disk was told, and what the store held after each of its transactions."""

    log: list[Event]
    states: list[Any]  # before the first transaction, after it, after the second ...; None while it was being made
    ends: list[int]  # the event with which each transaction ended
    calls: Counter[str]

    def acceptable(self, at: int) -> list[Any]:
        """What may be held after a power cut when so many events were told: nothing less than was acknowledged."""
        acknowledged = max((n for n, event in enumerate(self.log[:at], 1) if event[0] == "note"), default=0)
        first = sum(end <= acknowledged for end in self.ends)
        last = sum(end <= at for end in self.ends)
        return self.states[first : last + 1]


def held(path: Path) -> Any:
    """Every row of every table, and SQLite's word that the file is whole."""
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if database.execute("PRAGMA user_version").fetchone()[0] < migrations("sqlite")[-1][0]:
            return None
        named = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
        tables = [name for (name,) in database.execute(named).fetchall()]
        return {name: database.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in tables}


def record(folder: Path, work: Callable[[Disk], None]) -> Recording:
    """Does some work on a disk that remembers."""
    folder.mkdir()
    with Disk(folder) as disk:
        work(disk)
    platter, chance = Platter(), random.Random(0)
    states: list[Any] = [None]
    ends: list[int] = []
    for at, event in enumerate(disk.log, 1):
        # A program is shown what it wrote, whether or not that has reached the disk.
        platter.tell((*event[:2], True) if event[0] == "sync" else event, chance)
        if event == ("delete", "r.db-journal"):  # which is how SQLite commits
            write(folder / "state", platter.now())
            states.append(held(folder / "state" / "r.db"))
            ends.append(at)
    assert platter.now() == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return Recording(disk.log, states, ends, disk.calls)


def recorded_nights(folder: Path, *pragmas: str) -> Recording:
    def work(disk: Disk) -> None:
        with closing(opened(disk.folder)) as store:
            for pragma in pragmas:
                store._db._connection.execute(f"PRAGMA {pragma}")
            disk.note("schema")
            nights(store, disk.note)

    return record(folder, work)


def write(folder: Path, files: dict[str, bytes]) -> None:
    """The files of a disk as real ones, and no others."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def found(folder: Path, acceptable: Sequence[Any]) -> str:
    """Opens what a power cut has left as the next run does, and says what it is like."""
    try:
        with closing(opened(folder)) as store:
            whole = store.check()["integrity"] == "ok"
    except VehclassError as error:
        return f"not to be opened: {error}"
    if not whole:
        return "damaged"
    now = held(folder / "r.db")
    if now in acceptable:
        return "whole"
    empty = not any(rows for table, rows in now.items() if table != "schema_migration")
    return "whole" if None in acceptable and empty else "lost"


def cut(recording: Recording, count: int, folder: Path, expected: list[list[Any]] | None = None) -> Counter[str]:
    """Cuts the power so many times, and counts what is found after it; now and then, the work is finished, too."""
    chance = random.Random(SEED)
    seen: Counter[str] = Counter()
    folder.mkdir(exist_ok=True)
    for number, (at, image) in enumerate(crash_images(recording.log, count, chance)):
        write(folder, image)
        seen[found(folder, recording.acceptable(at))] += 1
        if expected is not None and number % 25 == 0:
            with closing(opened(folder)) as store:
                finish(store)
            assert everything(folder / "r.db") == expected
    return seen


# --- power loss ---


@needs_disk
class TestPowerLoss:
    """What was acknowledged is there after a power cut, whatever part of the rest had reached the disk."""

    def test_a_batch_is_one_transaction_and_acknowledged_after_it(self, tmp_path: Path) -> None:
        recording = recorded_nights(tmp_path / "disk")
        notes = [(at, event[1]) for at, event in enumerate(recording.log, 1) if event[0] == "note"]
        saves = [(before, at) for (before, _), (at, what) in pairwise(notes) if what == "save"]
        assert len(saves) > 10
        for before, at in saves:
            assert sum(before < end <= at for end in recording.ends) == 1
            # Its end itself is on the disk before it is acknowledged.
            assert recording.log[at - 3 : at] == [("delete", "r.db-journal"), ("sync folder",), ("note", "save")]

    def test_500_times(self, tmp_path: Path) -> None:
        recording, expected = recorded_nights(tmp_path / "disk"), undisturbed(tmp_path / "undisturbed", LAST)
        assert cut(recording, 500, tmp_path / "image", expected) == {"whole": 500}

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_10_000_times(self, tmp_path: Path) -> None:
        recording, expected = recorded_nights(tmp_path / "disk"), undisturbed(tmp_path / "undisturbed", LAST)
        assert cut(recording, 10_000, tmp_path / "image", expected) == {"whole": 10_000}

    def test_batches_larger_than_the_cache(self, tmp_path: Path) -> None:
        """Their pages reach the file before the transaction ends."""
        recording = recorded_nights(tmp_path / "disk", "cache_size = 5")
        assert cut(recording, 200, tmp_path / "image") == {"whole": 200}

    @pytest.mark.parametrize(
        ("pragma", "finds"),
        [
            ("synchronous = OFF", {"damaged"}),
            ("synchronous = NORMAL", {"lost"}),
            (
                "synchronous = FULL",
                {"lost"},
            ),  # the end of the last transaction, which is a file's deletion, is in doubt
        ],
    )
    def test_it_would_notice(self, pragma: str, finds: set[str], tmp_path: Path) -> None:
        """With fewer syncs than the store asks for, the same power cuts damage it, or undo what was acknowledged."""
        seen = cut(recorded_nights(tmp_path / "disk", pragma), 200, tmp_path / "image")
        assert finds <= set(seen)
        assert seen["whole"] < 190

    def test_again_while_the_next_run_takes_back_the_unfinished_batch(self, tmp_path: Path) -> None:
        recording = recorded_nights(tmp_path / "disk")
        seen: Counter[str] = Counter()
        for acceptable, _, disk in islice(half_written(recording, tmp_path / "half"), 10):
            for _, image in crash_images(disk.log, 15, random.Random(SEED)):
                write(tmp_path / "image", image)
                seen[found(tmp_path / "image", acceptable)] += 1
        assert seen == {"whole": 150}

    def test_then_a_disk_that_fails_while_it_is_taken_back(self, tmp_path: Path) -> None:
        recording = recorded_nights(tmp_path / "disk")
        seen: Counter[str] = Counter()
        told: Counter[str] = Counter()
        for acceptable, image, disk in islice(half_written(recording, tmp_path / "half"), 1):
            for fault in every_fault(disk.calls):
                write(tmp_path / "image", image)
                with Disk(tmp_path / "image", fault):
                    told[fault.call] += said(lambda: opened(tmp_path / "image").close()) is not None
                seen[found(tmp_path / "image", acceptable)] += 1
        assert set(seen) == {"whole"}
        assert set(told) == set(FAILURES)
        assert all(told.values())


def half_written(recording: Recording, folder: Path) -> Iterator[tuple[list[Any], dict[str, bytes], Disk]]:
    """Power cuts that left a batch half written: what may be held, the files, and what taking it back told the disk."""
    for at, image in crash_images(recording.log, 2_000, random.Random(SEED)):
        write(folder, image)
        with Disk(folder) as disk:
            opened(folder).close()
        if disk.calls["write"] and disk.calls["truncate"]:
            yield recording.acceptable(at), image, disk


# --- a disk that fails ---


def every_fault(made: Counter[str]) -> list[Fault]:
    """Each call that was made, failing once and failing from then on, in each way that it may."""
    return [
        Fault(call, number, code, lasting)
        for call, codes in FAILURES.items()
        for code in codes
        for number in range(1, made[call] + 1)
        for lasting in (False, True)
    ]


def said(work: Callable[[], object]) -> str | None:
    """What the user reads of an error, which is one of ours; None where there is none."""
    try:
        work()
    except StoreError as error:
        reason = re.fullmatch(
            r"The store sqlite:///\S+ failed: ([^.\n]+)\. What was saved before is intact; .*", str(error)
        )
        assert reason, error
        assert error.exit_code == 1
        return reason[1]
    return None


@dataclass(frozen=True)
class Failed:
    """A night on a disk that failed, and a run on the mended one that finished it."""

    came: bool  # whether there was such a call at all
    reason: str | None
    kept: bool  # whether all that was acknowledged was there after it, and nothing half
    recording: Recording


def on_a_disk_that_fails(fault: Fault, folder: Path) -> Failed:
    reason: str | None = None
    came = False
    after: Any = None
    at = 0

    def work(disk: Disk) -> None:
        nonlocal reason, came, after, at

        def night() -> None:
            with closing(opened(disk.folder)) as store:
                one_night(store, disk.note)

        disk.fault = fault
        reason = said(night)
        # A heartbeat within the same millisecond changes nothing, and is then not written: now and then a call less.
        assert disk.failed or (fault.number > 1 and reason is None)
        came, disk.fault, at = disk.failed, None, len(disk.log)
        after = held(disk.folder / "r.db")
        with closing(opened(disk.folder)) as store:
            finish(store, disk.note, FEW)

    recording = record(folder, work)
    return Failed(came, reason, after in recording.acceptable(at), recording)


def faults_of_one_night(folder: Path) -> list[Fault]:
    def work(disk: Disk) -> None:
        with closing(opened(disk.folder)) as store:
            one_night(store, disk.note)

    return every_fault(record(folder, work).calls)


def spread(faults: Sequence[Fault], each: int) -> list[Fault]:
    """At most so many faults of each call."""
    chance = random.Random(SEED)
    by_call = [[fault for fault in faults if fault.call == call] for call in FAILURES]
    return [fault for some in by_call for fault in chance.sample(some, min(each, len(some)))]


@needs_disk
class TestDiskThatFails:
    """One sentence, nothing that was acknowledged is lost, and the next run on the mended disk does the rest."""

    def test_at_some_calls(self, tmp_path: Path) -> None:
        print(self._at(spread(faults_of_one_night(tmp_path / "calls"), 8), tmp_path))

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_at_every_call(self, tmp_path: Path) -> None:
        print(self._at(faults_of_one_night(tmp_path / "calls"), tmp_path))

    def _at(self, faults: Sequence[Fault], folder: Path) -> Counter[tuple[str, str | None]]:
        expected = undisturbed(folder / "undisturbed", FEW)
        seen: Counter[tuple[str, str | None]] = Counter()
        for number, fault in enumerate(faults):
            place = folder / str(number)
            failed = on_a_disk_that_fails(fault, place)
            assert failed.kept, fault
            assert everything(place / "r.db") == expected, fault
            told = failed.came and fault.call != "sync folder"  # which SQLite passes over when it makes the journal
            assert failed.reason in MAY_BE_TOLD[fault.code] | (set() if told else {None}), fault
            seen[fault.call, failed.reason if failed.came else "no such call"] += 1
            shutil.rmtree(place)
        return seen

    def test_a_sync_that_failed_and_then_the_power(self, tmp_path: Path) -> None:
        """What the failed sync was to write may be gone for good, though every program still sees it."""
        assert self._cut(15, tmp_path) == {"whole": 15 * 20}

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_every_sync_that_failed_and_then_the_power(self, tmp_path: Path) -> None:
        seen = self._cut(1_000, tmp_path)
        assert set(seen) == {"whole"}
        print(seen)

    def _cut(self, most: int, folder: Path) -> Counter[str]:
        syncs = [fault for fault in faults_of_one_night(folder / "calls") if fault.call == "sync"]
        seen: Counter[str] = Counter()
        for number, fault in enumerate(random.Random(SEED).sample(syncs, min(most, len(syncs)))):
            place = folder / str(number)
            seen += cut(on_a_disk_that_fails(fault, place).recording, 20, folder / "image")
            shutil.rmtree(place)
        return seen


# --- the whole command ---


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos, three of them broken."""
    folder = tmp_path_factory.mktemp("disk")
    drawn = sorted((draw(folder / "drawn", "--count", "20", "--seed", "9", "--size", "320x240") / "photos").iterdir())
    uploads = folder / "uploads"
    uploads.mkdir()
    for number in range(60):
        whole = drawn[number % 20].read_bytes()
        (uploads / f"{number:02d}.jpg").write_bytes(whole[:900] if number % 25 == 7 else whole)
    return uploads


def command(container: Path, folder: Path) -> list[str]:
    options = ["--threads", "1", "--batch-size", "4", "--json"]
    return ["classify-batch", "-c", str(container), "-m", str(SAMPLE), "--store", str(folder / "r.db"), *options]


def ran(words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, env=clean_environment(), capture_output=True, text=True, check=False)


def on_a_disk(container: Path, folder: Path, fault: Fault | None = None) -> "subprocess.CompletedProcess[str]":
    """The command on such a disk; what it told the disk is in a .json beside the folder."""
    code = (
        "import atexit, json, sys; from pathlib import Path; from tests.failing_disk import Disk, Fault\n"
        f"disk = Disk(Path({str(folder)!r}), {fault!r}); disk.__enter__()\n"
        f"atexit.register(lambda: Path({str(folder)!r} + '.json').write_text(json.dumps(disk.calls)))\n"
        f"sys.argv = ['vehclass', *{command(container, folder)!r}]\n"
        "from vehclass.cli import main; main()"
    )
    return ran([sys.executable, "-c", code])


def is_said(done: "subprocess.CompletedProcess[str]") -> None:
    """That a command failed with one sentence of ours."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    reasons = "the disk is full|the disk reports an error|the file cannot be opened or made there"
    assert re.search(rf"r\.db failed: ({reasons})\. What was saved before is intact", done.stderr), done.stderr


@pytest.fixture(scope="module")
def whole(container: Path) -> Path:
    """The store of an undisturbed run."""
    store = container.parent / "r.db"
    assert ran([*VEHCLASS, *command(container, store.parent)]).returncode == 3
    assert [len(rows) for rows in contents(store)] == [60, 60, 57 * 3, 57 * 10]
    return store


class TestWholeCommand:
    """It fails with a sentence; the same command again on a disk that works leaves what an undisturbed one does."""

    @needs_disk
    def test_at_some_calls(self, container: Path, whole: Path, tmp_path: Path) -> None:
        self._fail(6, container, whole, tmp_path)

    @needs_disk
    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_at_100_calls(self, container: Path, whole: Path, tmp_path: Path) -> None:
        self._fail(100, container, whole, tmp_path)

    def _fail(self, count: int, container: Path, whole: Path, folder: Path) -> None:
        calls = folder / "calls"
        calls.mkdir()
        assert on_a_disk(container, calls).returncode == 3
        made = Counter(json.loads(calls.with_suffix(".json").read_text()))
        # How many photos are saved at a time, and so how many calls there are, is a matter of pace.
        made = Counter({call: many * 6 // 10 for call, many in made.items() if call != "sync folder"})
        faults = every_fault(made)
        stopped = 0
        for number, fault in enumerate(spread(faults, -(-count // 6))[:count]):
            place = folder / str(number)
            place.mkdir()
            done = on_a_disk(container, place, fault)
            if done.returncode == 3:  # no such call was made this time
                assert contents(place / "r.db") == contents(whole), fault
                continue
            is_said(done)
            assert ran([*VEHCLASS, *command(container, place)]).returncode in (0, 3)
            assert contents(place / "r.db") == contents(whole), fault
            shutil.rmtree(place)
            stopped += 1
        assert stopped > count / 2

    def test_full_at_4_sizes(self, container: Path, whole: Path, tmp_path: Path) -> None:
        self._fill(4, container, whole, tmp_path)

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_full_at_100_sizes(self, container: Path, whole: Path, tmp_path: Path) -> None:
        self._fill(100, container, whole, tmp_path)

    def _fill(self, count: int, container: Path, whole: Path, folder: Path) -> None:
        """No file may become larger than a part of what the store needs, which fails as a full disk does."""
        needed = whole.stat().st_size
        for number in range(count):
            place, size = folder / str(number), 1 + needed * number // count
            place.mkdir()
            limited = (
                f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); os.execv(sys.executable, sys.argv[1:])"
            )
            start = [sys.executable, "-c", f"import os, resource, sys; {limited}"]
            done = ran([*start, *VEHCLASS, *command(container, place)])
            is_said(done)
            assert ran([*VEHCLASS, *command(container, place)]).returncode in (0, 3)
            assert contents(place / "r.db") == contents(whole), size
            shutil.rmtree(place)
