"""When jobs are due, who runs them, and what becomes of a night when machines sleep, clocks jump and processes die."""

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
import time_machine

from tests.conftest import SAMPLE, VEHCLASS, Answer, clean_environment
from vehclass.errors import UsageError
from vehclass.records import LeaseClaim, ScheduleNote, iso
from vehclass.schedule import keeper, night
from vehclass.schedule.keeper import Keeper
from vehclass.schedule.night import Ended, Job, Night
from vehclass.schedule.times import Cron, Every, Times, due_between, parse
from vehclass.stores import open_store

CLOCK_TIMES = ("00:00", "00:30", "01:30", "02:15", "02:30", "03:00", "23:00", "23:45")
YEARS = 5
FIRST = date(2026, 11, 1)


def at(clock: str, zone: str) -> Times:
    return parse([clock], [], None, zone)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def change_days(zone: ZoneInfo) -> list[date]:
    """The days of five years on which the clocks of a zone change."""
    noons = [
        datetime(FIRST.year, FIRST.month, FIRST.day, 12, tzinfo=zone) + timedelta(days=n) for n in range(365 * YEARS)
    ]
    offsets = [noon.utcoffset() for noon in noons]
    return [noons[n].date() for n in range(1, len(noons)) if offsets[n] != offsets[n - 1]]


def one_a_day(times: Times, first: date, last: date) -> None:
    """Each day of a zone's calendar has the time once: none is left out, none comes twice."""
    begin = datetime(first.year, first.month, first.day, tzinfo=times.zone).astimezone(UTC) - timedelta(seconds=1)
    end = datetime(last.year, last.month, last.day, tzinfo=times.zone).astimezone(UTC) - timedelta(seconds=1)
    found = list(due_between(times, begin, end))
    nights = [due.astimezone(times.zone) for due in found]
    assert len(found) == (last - first).days, (str(times), nights)
    assert found == sorted(set(found))
    # What a change of the clocks skips comes right after it, at most three hours late, which may be the next day.
    for number, moment in enumerate(nights):
        wanted = first + timedelta(days=number)
        assert moment.date() == wanted or moment.time() < datetime.min.replace(hour=3).time(), (str(times), moment)


class TestTimes:
    def test_one_night_each_day_around_every_clock_change_of_every_zone(self) -> None:
        changes = 0
        for name in sorted(available_timezones()):
            for day in change_days(ZoneInfo(name)):
                changes += 1
                for clock in CLOCK_TIMES:
                    one_a_day(at(clock, name), day - timedelta(days=2), day + timedelta(days=3))
        assert changes > 1_000

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_one_night_each_day_in_every_zone_for_five_years(self) -> None:
        zones = sorted(available_timezones())
        assert len(zones) > 400
        for name in zones:
            for clock in ("01:30", "23:00"):
                one_a_day(at(clock, name), FIRST, FIRST + timedelta(days=365 * YEARS))

    @pytest.mark.parametrize(
        ("clock", "zone", "day", "due"),
        [
            ("23:00", "Europe/London", "2026-11-20", "2026-11-20T23:00"),
            ("23:00", "Europe/London", "2026-07-20", "2026-07-20T22:00"),
            ("01:30", "Europe/London", "2027-03-28", "2027-03-28T01:00"),  # skipped: right after the change
            ("01:30", "Europe/London", "2027-10-31", "2027-10-31T00:30"),  # twice: the first time
            ("02:15", "Australia/Lord_Howe", "2027-10-03", "2027-10-02T15:30"),  # a change of half an hour
            ("00:00", "America/Havana", "2027-03-14", "2027-03-14T05:00"),  # midnight is skipped
        ],
    )
    def test_known_nights(self, clock: str, zone: str, day: str, due: str) -> None:
        times = at(clock, zone)
        begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)) - timedelta(seconds=1)
        assert times.after(begin.astimezone(UTC)) == utc(due)

    def test_the_night_of_a_day_that_a_zone_left_out_comes_right_after_it(self) -> None:
        zone = ZoneInfo("Pacific/Apia")  # went from the 29th of December 2011 to the 31st
        found = list(due_between(at("23:00", "Pacific/Apia"), utc("2011-12-29T12:00"), utc("2012-01-01")))
        there = [f"{due.astimezone(zone):%d %H:%M}" for due in found]
        assert there == ["29 23:00", "31 00:00", "31 23:00"]

    def test_within_a_repeated_hour_the_first_time_is_not_given_again(self) -> None:
        times = at("01:30", "Europe/London")
        assert times.after(utc("2027-10-31T01:10")) == utc("2027-11-01T01:30")

    def test_sunday_is_0_as_in_cron(self) -> None:
        times = Cron(("0 12 * * 0",), ZoneInfo("UTC"))
        assert times.after(utc("2026-11-20")) == utc("2026-11-22T12:00")  # a Sunday

    def test_a_steady_pace_is_the_same_for_whoever_asks(self) -> None:
        times = Every(timedelta(minutes=15), ZoneInfo("UTC"))
        assert (
            times.after(utc("2026-11-20T10:01")) == times.after(utc("2026-11-20T10:14:59")) == utc("2026-11-20T10:15")
        )
        assert times.after(utc("2026-11-20T10:15")) == utc("2026-11-20T10:30")

    @pytest.mark.parametrize(
        ("at", "cron", "every", "zone", "why"),
        [
            ((), (), None, "UTC", "Say when"),
            (("23:00",), ("0 1 * * *",), None, "UTC", "Say when"),
            (("25:00",), (), None, "UTC", "clock time"),
            (("23",), (), None, "UTC", "clock time"),
            ((), ("* * * *",), None, "UTC", "five fields"),
            ((), ("61 * * * *",), None, "UTC", "bad minute"),
            ((), ("0 0 30 2 *",), None, "UTC", "--cron"),
            ((), (), 5.0, "UTC", "1m"),
            (("23:00",), (), None, "Europe/Lundon", "not a zone"),
            (("23:00",), (), None, "../../etc/passwd", "not a zone"),
        ],
    )
    def test_what_is_no_time(self, at: Any, cron: Any, every: Any, zone: str, why: str) -> None:
        with pytest.raises(UsageError, match=why):
            parse(at, cron, every, zone)


class Bench:
    """A job in a SQLite file, a clock that is set by hand, and runs that end as they are told to."""

    def __init__(self, folder: Path, clock: Any) -> None:
        self.url = f"sqlite:///{folder}/schedule.db"
        self.clock = clock
        self.job = Job("nightly", at("23:00", "UTC"), ("-c", "photos"), "-c photos", timedelta(hours=4), self.opened)
        self.begun: list[datetime] = []
        self.nights: list[Night] = []
        self.answers: list[int] = []
        self.at_work: Callable[[threading.Event], None] = lambda stop: None
        open_store(self.url, create=True).close()

    @contextmanager
    def opened(self) -> Iterator[Any]:
        with closing(open_store(self.url)) as store:
            yield store

    def run_child(self, job: Job, stop: threading.Event) -> Ended:
        self.begun.append(datetime.now(UTC))
        self.at_work(stop)
        return Ended(self.answers.pop(0) if self.answers else 0, {"run_id": "r", "classified": 3})

    @contextmanager
    def kept(self, *, run_now: bool = False) -> Iterator[threading.Event]:
        """A scheduler at work until the block ends."""
        stop = threading.Event()
        made = Keeper([self.job], self.run_child, self.nights.append, stop)
        thread = threading.Thread(target=made.keep, kwargs={"run_now": run_now})
        thread.start()
        try:
            time.sleep(0.3)
            yield stop
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()

    def seen(self, count: int) -> None:
        """Waits until so many nights have ended."""
        for _ in range(200):
            if len(self.nights) >= count:
                break
            time.sleep(0.03)
        time.sleep(0.3)  # one more would have begun
        assert len(self.nights) == count

    def row(self) -> dict[str, Any]:
        with self.opened() as store:
            (found,) = store.schedules()
            return dict(found)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(keeper, "BEAT_SECONDS", 0.05)
    for name in ("LOOK_AGAIN_SECONDS", "FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS", "AFTER_CRASH_SECONDS"):
        monkeypatch.setattr(night, name, 0.05)
    with time_machine.travel(utc("2026-11-20T22:00"), tick=True) as clock:
        yield Bench(tmp_path, clock)


class TestKeeper:
    def test_a_night_is_run_at_its_time_and_the_next_one_a_day_later(self, bench: Bench) -> None:
        with bench.kept():
            bench.seen(0)
            assert bench.row()["next_due_at"].startswith("2026-11-20T23:00")
            bench.clock.move_to(utc("2026-11-20T23:00:01"))
            bench.seen(1)
            assert bench.row()["next_due_at"].startswith("2026-11-21T23:00")
            bench.clock.move_to(utc("2026-11-21T23:00:01"))
            bench.seen(2)
        assert [one.due for one in bench.nights] == [utc("2026-11-20T23:00"), utc("2026-11-21T23:00")]
        last = json.loads(bench.row()["last"])
        assert (last["exit_code"], last["runs"]) == (0, [{"run_id": "r", "classified": 3}])

    def test_a_machine_that_slept_runs_late(self, bench: Bench) -> None:
        with bench.kept():
            bench.clock.move_to(utc("2026-11-20T23:40"))
            bench.seen(1)
        assert bench.nights[0].due == utc("2026-11-20T23:00")

    def test_a_machine_that_slept_too_long_says_so(self, bench: Bench) -> None:
        with bench.kept():
            bench.clock.move_to(utc("2026-11-21T03:30"))
            bench.seen(1)
        assert bench.begun == []
        assert "later than --grace" in bench.nights[0].ended.said

    def test_a_week_of_sleep_is_one_run(self, bench: Bench) -> None:
        with bench.kept():
            bench.clock.move_to(utc("2026-11-27T23:10"))
            bench.seen(1)
        assert bench.nights[0].due == utc("2026-11-27T23:00")

    def test_a_clock_that_is_set_back_does_not_run_a_night_twice(self, bench: Bench) -> None:
        with bench.kept():
            bench.clock.move_to(utc("2026-11-20T23:00:10"))
            bench.seen(1)
            bench.clock.move_to(utc("2026-11-20T22:00:10"))
            bench.seen(1)
            bench.clock.move_to(utc("2026-11-20T23:00:20"))
            bench.seen(1)

    def test_a_clock_that_is_set_forward_over_it_does_not_miss_a_night(self, bench: Bench) -> None:
        bench.clock.move_to(utc("2026-11-20T22:55"))
        with bench.kept():
            bench.clock.move_to(utc("2026-11-20T23:55"))
            bench.seen(1)

    def test_two_schedulers_are_one_run(self, bench: Bench) -> None:
        bench.at_work = lambda stop: time.sleep(0.2)
        with bench.kept(), bench.kept():
            bench.clock.move_to(utc("2026-11-20T23:00:01"))
            bench.seen(1)
        assert len(bench.begun) == 1

    def test_a_night_that_passed_while_no_scheduler_was_there_is_run_at_the_start(self, bench: Bench) -> None:
        with bench.kept():
            pass
        bench.clock.move_to(utc("2026-11-20T23:40"))
        with bench.kept():
            bench.seen(1)
        with bench.kept():
            bench.seen(1)

    def test_a_night_that_broke_off_with_its_scheduler_is_run_at_the_start(self, bench: Bench) -> None:
        bench.at_work = lambda stop: stop.wait(20) and None
        bench.answers = [143]
        with bench.kept():
            bench.clock.move_to(utc("2026-11-20T23:00:01"))
            time.sleep(0.5)
        assert (len(bench.begun), bench.nights) == (1, [])
        bench.at_work = lambda stop: None
        with bench.kept():
            bench.seen(1)
        assert bench.nights[0].due == utc("2026-11-20T23:00")

    def test_a_new_schedule_waits_for_its_first_time(self, bench: Bench) -> None:
        bench.clock.move_to(utc("2026-11-20T23:40"))
        with bench.kept():
            bench.seen(0)

    def test_run_now_runs_at_the_start_and_at_the_next_time(self, bench: Bench) -> None:
        with bench.kept(run_now=True):
            bench.seen(1)
            bench.clock.move_to(utc("2026-11-20T23:00:01"))
            bench.seen(2)

    def test_a_service_that_is_away_is_tried_again_within_the_grace(self, bench: Bench) -> None:
        bench.answers = [5, 5, 3]
        with bench.kept(run_now=True):
            bench.seen(1)
        assert [one.code for one in bench.nights[0].tries] == [5, 5, 3]

    def test_a_service_that_stays_away_is_given_up_after_the_grace(self, bench: Bench) -> None:
        bench.answers = [5] * 50
        bench.at_work = lambda stop: bench.clock.shift(timedelta(hours=1))
        with bench.kept(run_now=True):
            bench.seen(1)
        assert 3 <= len(bench.nights[0].tries) <= 6
        assert json.loads(bench.row()["last"])["exit_code"] == 5

    def test_a_crash_is_tried_again_and_then_given_up(self, bench: Bench) -> None:
        bench.answers = [-signal.SIGSEGV, 0, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGBUS, 0]
        with bench.kept(run_now=True):
            bench.seen(1)
            bench.clock.move_to(utc("2026-11-20T23:00:01"))
            bench.seen(2)
        assert [len(one.tries) for one in bench.nights] == [2, 3]
        assert bench.nights[1].ended.said == "killed by SIGBUS"

    def test_what_would_not_be_better_next_time_is_not_tried_again(self, bench: Bench) -> None:
        bench.answers = [2]
        with bench.kept(run_now=True):
            bench.seen(1)
        assert bench.nights[0].ended.code == 2

    def test_a_run_that_raises_what_nobody_foresaw_does_not_end_the_scheduler(self, bench: Bench) -> None:
        def fail(stop: threading.Event) -> None:
            bench.at_work = lambda stop: None
            raise RuntimeError("unforeseen")

        bench.at_work = fail
        with bench.kept():
            bench.clock.move_to(utc("2026-11-20T23:00:01"))
            bench.seen(0)
            bench.clock.move_to(utc("2026-11-21T23:00:01"))
            bench.seen(1)

    def test_a_due_time_while_it_is_running_is_left_out(self, bench: Bench) -> None:
        bench.job = replace(bench.job, times=parse([], [], 60.0, "UTC"))
        go_on = threading.Event()
        bench.at_work = lambda stop: go_on.wait(20) and None
        with bench.kept():
            for minute in (1, 2, 3):
                bench.clock.move_to(utc(f"2026-11-20T22:0{minute}:01"))
                time.sleep(0.3)
            assert len(bench.begun) == 1
            go_on.set()
            bench.seen(1)

    def test_a_store_that_is_away_at_the_start_is_met_later(self, bench: Bench) -> None:
        with bench.kept():
            pass
        bench.clock.move_to(utc("2026-11-20T23:40"))
        path = Path(bench.url.removeprefix("sqlite:///"))
        path.rename(path.with_suffix(".away"))
        with bench.kept():
            bench.seen(0)
            path.with_suffix(".away").rename(path)
            bench.seen(1)

    def test_another_job_of_the_same_name_is_refused_while_its_scheduler_is_alive(self, bench: Bench) -> None:
        with bench.opened() as store:
            store.beat_schedule(ScheduleNote("nightly", "at 06:00 UTC", "-c other", "elsewhere 1 2 3", None))
        with pytest.raises(UsageError, match="another schedule 'nightly'"):
            Keeper([bench.job], bench.run_child, bench.nights.append, threading.Event()).keep()

    def test_a_lease_that_another_holds_is_waited_for_until_the_grace_ends(self, bench: Bench) -> None:
        with bench.opened() as store:
            store.take_lease(LeaseClaim("schedule nightly", "night-other", "elsewhere 1 2 3", 600))
            bench.at_work = lambda stop: pytest.fail("it ran")
            stop = threading.Event()
            threading.Timer(0.3, lambda: bench.clock.move_to(utc("2026-11-21T03:30"))).start()
            ended = night.run_night(bench.job, utc("2026-11-20T23:00"), bench.run_child, stop)
        assert ended is not None
        assert "could not begin" in ended.ended.said


# --- as processes ---


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    """Eight photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in sorted(drawn.rglob("*.jpg"))[:8]:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@contextmanager
def scheduler(cwd: Path, *words: str | Path, json_lines: bool = True) -> Iterator["subprocess.Popen[str]"]:
    """`vehclass schedule` as a process, with its lines; ended when the block ends."""
    form = "json" if json_lines else "human"
    log = (cwd / f"schedule-{time.monotonic_ns()}.log").open("w+")
    process = subprocess.Popen(
        [*VEHCLASS, "schedule", "--log-format", form, *map(str, words)],
        cwd=cwd,
        env=clean_environment(),
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process.stdout = log  # type: ignore[assignment]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(40)
        log.close()


def lines(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    text = Path(process.stdout.name).read_text()  # type: ignore[union-attr]
    return [json.loads(line) for line in text.splitlines()]


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


def says(process: "subprocess.Popen[str]", text: str) -> bool:
    return any(text in line["message"] for line in lines(process))


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(one) for one in found.stdout.split()]


def sql(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def test_each_run_is_a_process_and_its_crash_is_not_the_schedulers(photos: Path, tmp_path: Path) -> None:
    job = ("--every", "6h", "--run-now", "--", "-c", photos, "-m", SAMPLE, "--store", "sqlite:///r.db")
    with scheduler(tmp_path, *job) as process:
        (child,) = wait_for(lambda: children(process.pid))
        os.kill(child, signal.SIGSEGV)
        wait_for(lambda: says(process, "killed by SIGSEGV; trying again"))
        wait_for(lambda: says(process, "ended well"))
        (ended,) = [line for line in lines(process) if "ended well" in line["message"]]
        assert (ended["night"]["tries"], ended["night"]["runs"][0]["classified"]) == (2, 8)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        assert time.monotonic() - began < 5
    for line in lines(process):
        assert {"time", "level", "message", "logger"} <= set(line)


def test_a_scheduler_that_is_stopped_asks_its_run_to_end(photos: Path, tmp_path: Path) -> None:
    job = ("--every", "6h", "--run-now", "--", "-c", photos, "-m", SAMPLE, "--store", "sqlite:///r.db")
    with scheduler(tmp_path, *job) as process:
        (child,) = wait_for(lambda: children(process.pid))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert not Path(f"/proc/{child}").exists()


def race(photos: Path, store: Path, cwd: Path, vehclass: Callable[..., Answer]) -> None:
    """Two schedulers find the same night missed while a cron job begins: one of the three classifies each photo."""
    due = datetime.now(UTC).replace(second=0, microsecond=0)
    words = ("-c", photos, "-m", SAMPLE, "--store", f"sqlite:///{store}")
    with closing(open_store(f"sqlite:///{store}", create=True)) as known:
        text = " ".join(map(str, words))
        known.beat_schedule(ScheduleNote("photos", "every 1h", text, "vm 1 1 gone/1", iso(due - timedelta(hours=1))))
    job = ("--every", "1h", "--grace", "2h", "--", *words)
    with scheduler(cwd, *job) as first, scheduler(cwd, *job) as second:
        cron = vehclass("classify-batch", *words, cwd=cwd)
        assert cron.code in (0, 4)
        wait_for(lambda: sql(store, "SELECT 1 FROM schedule WHERE ended_due_at IS NOT NULL"), 90)
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
        said = [first.wait(40), second.wait(40)]
        assert said == [143, 143]
        begun = [line for one in (first, second) for line in lines(one) if line["message"] == "begins"]
    ended = sql(store, "SELECT classified FROM run WHERE status = 'done'")
    assert len(begun) in (1, 2)  # two tries where the cron job was at it
    assert len({line["due"] for line in begun}) == 1
    assert sum(count for (count,) in ended) == 8
    assert sql(store, "SELECT count(*) FROM outcome") == [(8,)]


def test_two_schedulers_and_a_cron_job_at_once(photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    race(photos, tmp_path / "r.db", tmp_path, vehclass)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_schedulers_and_a_cron_job_at_once_a_hundred_times(
    photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]
) -> None:
    for number in range(100):
        race(photos, tmp_path / f"r{number}.db", tmp_path, vehclass)


TOML = """
store = "sqlite:///r.db"

[[schedule]]
name = "uploads"
at = ["06:00", "23:00"]
timezone = "Europe/London"
container = "photos"
model = "{sample}"
include = ["*.jpg", "*.png"]
full = true

[[schedule]]
name = "returns"
every = "15m"
container = "photos"
model = "{sample}"
prefix = "returns/"
"""


def test_several_schedules_from_a_file(photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    (tmp_path / "vehclass.toml").write_text(TOML.format(sample=SAMPLE))
    listed = vehclass("schedule", "--list", "--json")
    assert listed.code == 0, listed.err
    by_name = {row["schedule"]: row for row in listed.json}
    assert set(by_name) == {"uploads", "returns"}
    assert by_name["uploads"]["times"] == "at 06:00 and at 23:00 Europe/London"
    assert (
        by_name["uploads"]["command"] == f"--container photos --model {SAMPLE} --include *.jpg --include *.png --full"
    )
    table = vehclass("schedule", "--list", "--name", "returns")
    assert ("returns" in table.out, "uploads" in table.out) == (True, False)
    assert vehclass("schedule", "--list", "--name", "nothing").code == 2
    # The other commands take their settings from the same file.
    assert vehclass("classify-batch", "-c", photos, "-m", SAMPLE, "--limit", "1").code == 0


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ('container = "photos"', "Say when"),
        ('at = "23:00"', "--container"),
        ('at = "23:00"\ncontainer = "photos"\nmodle = "x"', "modle"),
        ('at = "23:00"\ncontainer = "https://a.blob.core.windows.net/c?sig=abc"', "AZURE_STORAGE_SAS_TOKEN"),
        ('at = "23:00"\ncontainer = "photos"\ndry-run = true', "--dry-run"),
        ('at = "23:00"\ncontainer = "photos"\nlimit = 0', "limit"),
    ],
)
def test_a_schedule_in_a_file_that_is_wrong(
    entry: str, why: str, tmp_path: Path, vehclass: Callable[..., Answer]
) -> None:
    (tmp_path / "vehclass.toml").write_text(f"[[schedule]]\n{entry}\n")
    done = vehclass("schedule", "--list")
    assert (done.code, why in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--at", "23:00"), "Say what to run"),
        (("--", "-c", "photos"), "Say when"),
        ((), "vehclass.toml"),
        (("--at", "23:00", "--json", "--", "-c", "photos"), "--list"),
        (("--at", "23:00", "--", "-c", "nowhere", "-m", SAMPLE), "nowhere"),
        (("--at", "23:00", "--", "-c", "photos", "-m", "nomodel/x"), "nomodel"),
    ],
)
def test_wrong_words_stop_before_any_waiting(
    words: tuple[str, ...], why: str, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]
) -> None:
    done = vehclass("schedule", *words)
    assert (done.code, why in done.err) == (2, True), done.err
    assert not (tmp_path / "vehclass.db").exists()


def test_status_says_what_is_wrong(tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    path = tmp_path / "r.db"
    assert vehclass("schedule", "status", "--store", f"sqlite:///{path}").code == 2
    with closing(open_store(f"sqlite:///{path}", create=True)) as store:
        assert vehclass("schedule", "status", "--store", f"sqlite:///{path}").code == 0
        store.beat_schedule(ScheduleNote("good", "every 1h", "-c photos", "vm 1 2 3", "2026-11-20T23:00:00.000Z"))
        ticket = store.take_lease(LeaseClaim("schedule good", "n1", "vm 1 2 3", 60))
        store.end_due(
            "good", "2026-11-20T22:00:00.000Z", json.dumps({"exit_code": 0, "message": None, "runs": []}), ticket
        )
        assert vehclass("schedule", "status", "--store", f"sqlite:///{path}").code == 0
        bad = json.dumps({"exit_code": 5, "message": "the service is away", "runs": []})
        store.end_due("good", "2026-11-20T23:00:00.000Z", bad, ticket)
    failed = vehclass("schedule", "status", "--store", f"sqlite:///{path}")
    assert (failed.code, "the service is away" in failed.out) == (1, True)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE schedule SET heartbeat_at = '2026-01-01T00:00:00.000Z', last = NULL")
    silent = vehclass("schedule", "status", "--json", "--store", f"sqlite:///{path}")
    assert (silent.code, silent.json[0]["alive"]) == (1, False)
