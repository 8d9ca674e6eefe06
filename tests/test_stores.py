"""Every store keeps the same promises: what is new, one row a photo, repeating is harmless, one run at a time."""

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cosmos
from tests.tsql_standin import Engine
from vehclass.errors import LeaseHeld, LeaseLost, StoreBusy, StoreError, StoreForeign, StoreNotFound, UsageError
from vehclass.records import (
    Failure,
    ImageFacts,
    ImageRef,
    LeaseClaim,
    ModelInfo,
    Outcome,
    Prediction,
    ResultFilter,
    RunEnd,
    RunStart,
    RunTicket,
    ScheduleNote,
    Task,
    image_id,
    iso,
    now,
)
from vehclass.stores import Store, open_store
from vehclass.stores.options import StoreOptions
from vehclass.stores.queries import migrations
from vehclass.stores.sqlite import APPLICATION_ID, BOUND_ROWS, run_statements

CONDITION = Task("condition", ("clean", "damaged", "dirty"), threshold=0.6)
VIEW = Task("view", ("exterior", "interior"))
MODEL = ModelInfo("sample", "abc123", (CONDITION, VIEW), (32, 32), "2026-01-01T00:00:00Z")
WHEN = datetime(2026, 11, 1, 22, 0, tzinfo=UTC)
UNREADABLE = Failure("read", "timeout", "It stopped arriving.", permanent=False)
TRUNCATED = Failure("decode", "truncated", "The file ends before the picture does.", permanent=True)


def ref(name: str, etag: str = "1") -> ImageRef:
    return ImageRef(image_id("file:///photos", name), "file:///photos", name, etag, 100, WHEN)


def classified(name: str, etag: str = "1", share: float = 0.8) -> Outcome:
    rest = (1 - share) / 2
    return Outcome(
        ref(name, etag),
        ImageFacts(640, 480, "jpeg", "ff" * 32),
        (
            Prediction("condition", "damaged", share, share < 0.6, (rest, share, rest)),
            Prediction("view", "exterior", 0.9, False, (0.9, 0.1)),
        ),
    )


def failed(name: str, why: Failure = UNREADABLE, etag: str = "1") -> Outcome:
    return Outcome(ref(name, etag), failure=why)


# VEHCLASS_TEST_MSSQL is the ODBC connection string of a database that may be emptied: the T-SQL itself is run there.
SQL_SERVER = os.environ.get("VEHCLASS_TEST_MSSQL")
KINDS = ["memory", "file", "azure-sql", "cosmos", *(["sql-server"] if SQL_SERVER else [])]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Every store in turn, new and empty."""
    with opened(request.param, request, tmp_path) as made:
        yield made


@contextmanager
def opened(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Store]:
    with place(kind, request, folder) as (url, options):
        made = open_store(url, create=True, options=options)
        yield made
        made.close()


@contextmanager
def place(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, StoreOptions]]:
    """Where a new store of a kind can be, while the block lasts."""
    options = StoreOptions(wait=60, timeout=20)
    with ExitStack() as stack:
        match kind:
            case "memory":
                url = "sqlite:///:memory:"
            case "file":
                url = f"sqlite:///{folder}/r.db"
            case "azure-sql":
                # Through pyodbc and Microsoft's driver to a stand-in: all of ours but the T-SQL itself.
                engine = Engine(folder / "behind.db")
                server = stack.enter_context(engine.server().running())
                stack.callback(engine.close)
                url = f"mssql://sa:secret@127.0.0.1:{server.port}/db?encrypt=no"
            case "sql-server":
                empty_sql_server(SQL_SERVER or "")
                url, options = "mssql://", replace(options, sql_connection_string=SQL_SERVER)
            case _:
                emulator: Cosmos = request.getfixturevalue("cosmos")
                url = emulator.url(f"d{secrets.token_hex(6)}")
                options = replace(options, cosmos_key=emulator.KEY)
        yield url, options


def empty_sql_server(string: str) -> None:
    """Drops what an earlier test has made."""
    import pyodbc

    connection = pyodbc.connect(string, autocommit=True)
    for view in ("image_prediction", "image_probability", "image_failure"):
        connection.execute(f"DROP VIEW IF EXISTS dbo.{view}")
    tables = (
        "prediction",
        "probability",
        "outcome",
        "label",
        "task",
        "model",
        "[image]",
        "run",
        "lease",
        "mark",
        "schedule",
        "run_profile",
    )
    for table in (*tables, "schema_migration"):
        connection.execute(f"DROP TABLE IF EXISTS dbo.{table}")
    connection.close()


@pytest.fixture
def ticket(store: Store) -> RunTicket:
    return begin(store, "run-1")


def begin(store: Store, run_id: str, model: ModelInfo = MODEL) -> RunTicket:
    claim = LeaseClaim(f"file:///photos {model.version}", run_id, "here 1", 60, is_dead=lambda holder: True)
    taken = store.take_lease(claim)
    store.start_run(RunStart(run_id, "classify-batch", "file:///photos", model.key, "{}", "here"), model)
    return taken


def rows(store: Store, what: str, **wanted: Any) -> list[dict[str, Any]]:
    return list(store.results(what, ResultFilter(**wanted)))


def new(store: Store, *refs: ImageRef, model: ModelInfo = MODEL, retry: bool = False) -> list[str]:
    return [one.name for one in store.unseen(refs, model, retry_failed=retry)]


class TestEveryStore:
    """The contract."""

    def test_everything_is_new_to_an_empty_store(self, store: Store) -> None:
        assert new(store, ref("b"), ref("a")) == ["b", "a"]

    def test_what_is_saved_is_no_longer_new(self, store: Store, ticket: RunTicket) -> None:
        store.save([classified("a"), classified("c")], MODEL, ticket, max_attempts=3)
        assert new(store, ref("a"), ref("b"), ref("c"), ref("d")) == ["b", "d"]

    def test_a_replaced_image_is_new_again(self, store: Store, ticket: RunTicket) -> None:
        store.save([classified("a")], MODEL, ticket, max_attempts=3)
        assert new(store, ref("a", "2")) == ["a"]
        store.save([classified("a", "2", share=0.5)], MODEL, ticket, max_attempts=3)
        assert new(store, ref("a", "2")) == []
        found = rows(store, "predictions", task="condition")
        assert [(row["name"], row["etag"], row["probability"]) for row in found] == [("a", "2", 0.5)]

    def test_another_model_has_not_seen_it(self, store: Store, ticket: RunTicket) -> None:
        store.save([classified("a")], MODEL, ticket, max_attempts=3)
        other = replace(MODEL, version="def456")
        assert new(store, ref("a"), model=other) == ["a"]
        second = begin(store, "run-2", other)
        store.save([classified("a", share=0.7)], other, second, max_attempts=3)
        assert {row["model"] for row in rows(store, "predictions")} == {"sample@abc123", "sample@def456"}

    def test_rows_say_what_the_model_said(self, store: Store, ticket: RunTicket) -> None:
        store.save([classified("sub/ä?#%.jpg")], MODEL, ticket, max_attempts=3)
        condition, view = rows(store, "predictions")
        assert condition["name"] == "sub/ä?#%.jpg"
        assert (condition["task"], condition["label"], condition["probability"]) == ("condition", "damaged", 0.8)
        assert (condition["needs_review"], view["needs_review"]) == (0, 0)
        assert (condition["width"], condition["height"], condition["sha256"]) == (640, 480, "ff" * 32)
        assert condition["run_id"] == "run-1"
        probabilities = {(row["task"], row["label"]): row["probability"] for row in rows(store, "probabilities")}
        assert probabilities == {
            ("condition", "clean"): pytest.approx(0.1),
            ("condition", "damaged"): 0.8,
            ("condition", "dirty"): pytest.approx(0.1),
            ("view", "exterior"): 0.9,
            ("view", "interior"): 0.1,
        }

    def test_saving_twice_changes_nothing(self, store: Store, ticket: RunTicket) -> None:
        batch = [classified("a"), failed("b"), failed("c", TRUNCATED)]
        store.save(batch, MODEL, ticket, max_attempts=3)
        before = [rows(store, what) for what in ("predictions", "probabilities")]
        store.save([batch[0]], MODEL, ticket, max_attempts=3)
        after = [rows(store, what) for what in ("predictions", "probabilities")]
        for table in (*before, *after):
            for row in table:
                row.pop("classified_at")
        assert after == before
        assert store.counts("run-1").done == 3

    def test_a_batch_is_saved_whole_or_not_at_all(self, store: Store, ticket: RunTicket) -> None:
        impossible = replace(
            classified("b"),
            predictions=(*classified("b").predictions[:1], Prediction("view", "exterior", 7.0, False, (7.0, 0.0))),
        )
        with pytest.raises(StoreError):
            store.save([classified("a"), impossible], MODEL, ticket, max_attempts=3)
        assert new(store, ref("a"), ref("b")) == ["a", "b"]
        assert rows(store, "predictions") == []

    def test_a_permanent_failure_is_quarantined_at_once(self, store: Store, ticket: RunTicket) -> None:
        store.save([failed("a", TRUNCATED)], MODEL, ticket, max_attempts=3)
        assert new(store, ref("a")) == []
        assert new(store, ref("a"), retry=True) == ["a"]
        assert new(store, ref("a", "2")) == ["a"]
        (row,) = rows(store, "failures")
        assert (row["stage"], row["code"], row["quarantined"]) == ("decode", "truncated", 1)

    def test_a_passing_failure_is_tried_again_until_the_attempts_are_used_up(self, store: Store) -> None:
        for attempt in (1, 2):
            store.save([failed("a")], MODEL, begin(store, f"run-{attempt}"), max_attempts=3)
            assert new(store, ref("a")) == ["a"], attempt
        store.save([failed("a")], MODEL, begin(store, "run-3"), max_attempts=3)
        assert new(store, ref("a")) == []
        (row,) = rows(store, "failures")
        assert (row["attempts"], row["quarantined"]) == (3, 1)

    def test_a_batch_that_is_written_again_is_no_further_attempt(self, store: Store, ticket: RunTicket) -> None:
        for _ in range(4):  # as when the answer to the first was lost
            store.save([failed("a")], MODEL, ticket, max_attempts=3)
        (row,) = rows(store, "failures")
        assert (row["attempts"], row["quarantined"]) == (1, 0)

    def test_attempts_begin_anew_with_new_content(self, store: Store, ticket: RunTicket) -> None:
        for etag in ("1", "1", "2"):
            store.save([failed("a", etag=etag)], MODEL, ticket, max_attempts=3)
        (row,) = rows(store, "failures")
        assert (row["attempts"], row["quarantined"], row["etag"]) == (1, 0, "2")

    def test_success_after_failure_leaves_no_failure(self, store: Store, ticket: RunTicket) -> None:
        store.save([failed("a")], MODEL, ticket, max_attempts=3)
        store.save([classified("a")], MODEL, ticket, max_attempts=3)
        assert rows(store, "failures") == []
        assert len(rows(store, "predictions")) == 2

    def test_failure_after_success_leaves_no_prediction_of_former_content(
        self, store: Store, ticket: RunTicket
    ) -> None:
        store.save([classified("a"), classified("b")], MODEL, ticket, max_attempts=3)
        store.save([failed("a", TRUNCATED, etag="2")], MODEL, ticket, max_attempts=3)
        assert {row["name"] for row in rows(store, "predictions")} == {"b"}
        assert {row["name"] for row in rows(store, "probabilities")} == {"b"}

    def test_one_models_trouble_does_not_forget_what_another_saw(self, store: Store, ticket: RunTicket) -> None:
        store.save([classified("a")], MODEL, ticket, max_attempts=3)
        other = replace(MODEL, version="def456")
        store.save([failed("a")], other, begin(store, "run-2", other), max_attempts=3)
        (row,) = rows(store, "predictions", task="view")
        assert (row["width"], row["height"], row["sha256"]) == (640, 480, "ff" * 32)

    def test_counts_come_from_the_rows(self, store: Store, ticket: RunTicket) -> None:
        batch = [classified("a"), classified("b", share=0.5), failed("c"), failed("d", TRUNCATED)]
        store.save(batch, MODEL, ticket, max_attempts=3)
        counts = store.counts("run-1")
        assert (counts.classified, counts.failed, counts.quarantined, counts.needs_review) == (2, 2, 1, 1)
        store.end_run("run-1", RunEnd("done", 3, None, listed=9, new=4))
        (run,) = store.runs(limit=5)
        assert (run["status"], run["exit_code"], run["listed"], run["new"], run["classified"]) == ("done", 3, 9, 4, 2)

    def test_names_that_no_text_can_hold(self, store: Store, ticket: RunTicket) -> None:
        for name in ("caf\udce9.jpg", "null\0.jpg", "'; DROP TABLE image; --", "line\nbreak"):
            store.save([classified(name)], MODEL, ticket, max_attempts=3)
            assert new(store, ref(name)) == []
        assert [row["name"] for row in rows(store, "predictions", task="view")] == [
            "caf\\xe9.jpg",
            "null\\x00.jpg",
            "'; DROP TABLE image; --",
            "line\nbreak",
        ]

    @pytest.mark.parametrize(
        ("wanted", "names"),
        [
            ({"label": "damaged"}, "abc"),
            ({"label": "clean"}, ""),
            ({"min_probability": 0.7, "task": "condition"}, "bc"),
            ({"max_probability": 0.55}, "a"),
            ({"needs_review": True}, "a"),
            ({"needs_review": False, "task": "condition"}, "bc"),
            ({"name": "b", "task": "view"}, "b"),
            ({"model": "sample@abc123", "task": "view"}, "abc"),
            ({"model": "other"}, ""),
            ({"run_id": "run-9"}, ""),
            ({"since": "2000-01-01T00:00:00Z", "task": "view"}, "abc"),
            ({"until_time": "2000-01-01T00:00:00Z"}, ""),
        ],
    )
    def test_filters(self, store: Store, ticket: RunTicket, wanted: dict[str, Any], names: str) -> None:
        batch = [classified("a", share=0.5), classified("b", share=0.7), classified("c", share=0.9)]
        store.save(batch, MODEL, ticket, max_attempts=3)
        assert "".join(row["name"] for row in rows(store, "predictions", **wanted)) == names

    def test_the_newest_come_first_when_listed(self, store: Store, ticket: RunTicket) -> None:
        store.save([classified(name) for name in "abcd"], MODEL, ticket, max_attempts=3)
        found = store.first_results("predictions", ResultFilter(task="view"), 2)
        assert [row["name"] for row in found] == ["d", "c"]

    def test_more_images_than_one_stretch(self, store: Store, ticket: RunTicket) -> None:
        # Two and a half stretches of a SQL store, two and a half pages of Cosmos DB, whose emulator takes its time.
        names = [f"{n:05d}" for n in range(2_500 if store.url.startswith("cosmos") else 12_000)]
        store.save([classified(name) for name in names], MODEL, ticket, max_attempts=3)
        assert [row["name"] for row in rows(store, "predictions", task="view")] == names
        assert new(store, *map(ref, names), ref("extra")) == ["extra"]


class TestLeases:
    """One run at a time."""

    CLAIM = LeaseClaim("k", "first", "here 1", 60)

    def test_the_second_is_told_who_holds_it(self, store: Store) -> None:
        store.take_lease(self.CLAIM)
        with pytest.raises(LeaseHeld, match="first on here"):
            store.take_lease(replace(self.CLAIM, run_id="second", holder="there 2"))

    def test_freed_is_free(self, store: Store) -> None:
        first = store.take_lease(self.CLAIM)
        store.free_lease(first)
        assert store.take_lease(replace(self.CLAIM, run_id="second")).fence == first.fence + 1

    def test_another_source_is_another_lease(self, store: Store) -> None:
        store.take_lease(self.CLAIM)
        store.take_lease(replace(self.CLAIM, key="other", run_id="second"))

    def test_an_expired_lease_passes_on(self, store: Store) -> None:
        store.take_lease(replace(self.CLAIM, seconds=-1))
        assert store.take_lease(replace(self.CLAIM, run_id="second")).fence == 2

    def test_a_dead_holder_is_replaced_at_once_and_its_run_ended(self, store: Store) -> None:
        begin(store, "run-1")
        begin(store, "run-2")
        status = {run["run_id"]: run["status"] for run in store.runs(limit=5)}
        assert status == {"run-1": "interrupted", "run-2": "running"}

    def test_who_wakes_up_late_writes_nothing(self, store: Store) -> None:
        late = begin(store, "run-1")
        begin(store, "run-2")
        with pytest.raises(LeaseLost):
            store.save([classified("a")], MODEL, late, max_attempts=3)
        with pytest.raises(LeaseLost):
            store.renew_lease(late, 60)
        assert rows(store, "predictions") == []

    def test_a_mark_is_kept_for_the_next_run(self, store: Store) -> None:
        group, key, other = "a" * 32, "0" * 32, "f" * 32
        first = begin(store, "run-1")
        assert store.marks(group) == {}
        store.open_mark(group, key, first)
        store.open_mark(group, other, first)
        store.open_mark("b" * 32, "c" * 32, first)
        assert store.marks(group) == {key: "", other: ""}
        store.leave_mark(key, "one", first)
        store.leave_mark(other, "another's", first)
        store.open_mark(group, key, first)
        assert store.marks(group) == {key: "one", other: "another's"}
        long = "done " * 180_000  # as after a night of hundreds of millions
        store.leave_mark(key, long, first)
        assert store.marks(group)[key] == long
        store.drop_marks([key, "d" * 32], first)
        assert store.marks(group) == {key: "", other: "another's"}

    def test_a_mark_goes_where_there_is_room_for_it(self, store: Store) -> None:
        first = begin(store, "run-1")
        store.open_mark("a" * 32, "0" * 32, first)
        second = begin(store, "run-2")
        store.leave_mark("0" * 32, "without room", second)
        store.leave_mark("1" * 32, "without room", second)
        assert store.marks("a" * 32) == {"0" * 32: ""}

    def test_who_wakes_up_late_leaves_no_mark(self, store: Store) -> None:
        late = begin(store, "run-1")
        store.open_mark("a" * 32, "0" * 32, late)
        store.leave_mark("0" * 32, "in time", late)
        begin(store, "run-2")
        for work in (
            lambda: store.leave_mark("0" * 32, "late", late),
            lambda: store.drop_marks(["0" * 32], late),
            lambda: store.open_mark("a" * 32, "1" * 32, late),
        ):
            with pytest.raises(LeaseLost):
                work()
        assert store.marks("a" * 32) == {"0" * 32: "in time"}

    @pytest.mark.parametrize("how", ["name", "age", "both"])
    def test_what_is_deleted_is_gone_and_new_again(self, store: Store, ticket: RunTicket, how: str) -> None:
        other = replace(MODEL, version="f" * 12)
        store.save([classified("a"), classified("b"), failed("c")], MODEL, ticket, max_attempts=3)
        store.start_run(RunStart("run-1", "test", "file:///photos", other.key, "{}", "host"), other)
        store.save([classified("a")], other, ticket, max_attempts=3)
        store.open_mark("a" * 32, "0" * 32, ticket)
        store.leave_mark("0" * 32, "all done", ticket)
        time.sleep(0.01)
        later = iso(now())
        store.save([classified("b", etag="2")], MODEL, ticket, max_attempts=3)
        wanted = {
            "name": {"name": "a"},
            "age": {"before": later},
            "both": {"name": "b", "before": "2020-01-01T00:00:00.000Z"},
        }
        deleted = sum(store.delete(**wanted[how]))
        gone = {"name": {"a"}, "age": {"a", "c"}, "both": set()}[how]
        left = {"a", "b", "c"} - gone
        assert {row["name"] for what in ("predictions", "failures") for row in rows(store, what)} == left
        assert {row["name"] for row in rows(store, "probabilities")} == left - {"c"}
        refs = [ref("a"), ref("b", "2"), ref("c")]
        assert set(new(store, *refs)) == gone | ({"c"} if "c" in left else set())
        assert (deleted >= len(gone), deleted == 0) == (True, not gone)
        assert set(store.marks("a" * 32).values()) <= ({""} if gone else {"", "all done"})

    def test_a_run_says_where_its_time_went(self, store: Store) -> None:
        begin(store, "run-1")
        begin(store, "run-2")
        store.end_run("run-1", RunEnd("done", 0, None, 9, 4, '{"seconds": 1.5}'))
        store.end_run("run-2", RunEnd("done", 0, None, 9, 4))
        assert [store.run_profile(run) for run in ("run-1", "run-2", "run-3")] == [{"seconds": 1.5}, None, None]

    def test_a_schedule_says_that_it_is_alive_and_how_it_ended(self, store: Store) -> None:
        assert store.schedules() == []
        note = ScheduleNote("uploads é", "at 23:00 UTC", "-c uploads", "host 1 2 3", "2026-11-20T23:00:00.000Z")
        store.beat_schedule(note)
        store.beat_schedule(replace(note, name="another", next_due=None))
        another, row = store.schedules()
        assert (another["name"], another["next_due_at"], another["ended_due_at"], another["last"]) == (
            "another",
            *[None] * 3,
        )
        assert row["silent_seconds"] < 60
        assert (row["name"], row["times"], row["command"], row["holder"]) == (
            note.name,
            note.times,
            note.command,
            note.holder,
        )
        assert row["next_due_at"] == note.next_due
        ticket = store.take_lease(LeaseClaim("schedule uploads é", "night-1", "host 1 2 3", 60))
        store.end_due(note.name, "2026-11-20T23:00:00.000Z", '{"exit_code": 0}', ticket)
        store.beat_schedule(replace(note, next_due="2026-11-21T23:00:00.000Z"))
        row = store.schedules()[1]
        assert (row["ended_due_at"], row["last"]) == ("2026-11-20T23:00:00.000Z", '{"exit_code": 0}')
        assert row["next_due_at"] == "2026-11-21T23:00:00.000Z"

    def test_a_scheduler_that_wakes_up_late_does_not_say_how_it_ended(self, store: Store) -> None:
        store.beat_schedule(ScheduleNote("uploads", "at 23:00 UTC", "-c uploads", "host 1 2 3", None))
        late = store.take_lease(LeaseClaim("schedule uploads", "night-1", "host 1 2 3", 60))
        store.take_lease(LeaseClaim("schedule uploads", "night-2", "host 4 5 6", 60, lambda holder: True))
        with pytest.raises(LeaseLost):
            store.end_due("uploads", "2026-11-20T23:00:00.000Z", "{}", late)
        assert store.schedules()[0]["ended_due_at"] is None

    def test_a_lease_says_whether_its_last_holder_died(self, store: Store) -> None:
        first = store.take_lease(LeaseClaim("k", "run-1", "host 1 2 3", 60))
        second = store.take_lease(LeaseClaim("k", "run-2", "host 1 2 3", 60, lambda holder: True))
        store.free_lease(second)
        third = store.take_lease(LeaseClaim("k", "run-3", "host 1 2 3", 60))
        assert [one.after_death for one in (first, second, third)] == [False, True, False]

    def test_threads_share_a_store(self, store: Store, ticket: RunTicket) -> None:
        def work(lane: int) -> None:
            for n in range(20):
                store.save([classified(f"{lane}/{n}")], MODEL, ticket, max_attempts=3)
                store.renew_lease(ticket, 60)

        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.counts("run-1").classified == 80


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "memory"])
def test_two_writers_on_the_same_images(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Two models look at one container at the same time: both end well, and each photo is there once."""
    with place(kind, request, tmp_path) as (url, options):
        open_store(url, create=True, options=options).close()
        problems: list[BaseException] = []

        def write(version: str, order: int) -> None:
            model = replace(MODEL, version=version)
            try:
                mine = open_store(url, options=options)
                ticket = begin(mine, f"run-{version}", model)
                names = [f"{n:03d}" for n in range(120)][::order]
                for start in range(0, 120, 20):
                    mine.save([classified(name) for name in names[start : start + 20]], model, ticket, max_attempts=3)
                mine.close()
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=write, args=args) for args in (("aaa", 1), ("bbb", -1), ("ccc", 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        seen = open_store(url, options=options)
        found = rows(seen, "predictions", task="view")
        assert len(found) == len({(row["name"], row["model"]) for row in found}) == 360
        assert {row["image_id"] for row in found} == {ref(f"{n:03d}").image_id for n in range(120)}
        assert len(rows(seen, "probabilities")) == 360 * 5
        seen.close()


def test_few_statements_are_prepared_whatever_the_number_of_rows() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE pair (a INTEGER, b INTEGER)")
    seen: set[str] = set()
    written = 0

    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, parameters: Any = ()) -> "Cursor":
            seen.add(sql)
            return super().execute(sql, parameters)

    for count in range(0, 3 * BOUND_ROWS, 97):
        rows = [(count, n) for n in range(count)]
        run_statements(connection.cursor(Cursor), ["INSERT INTO pair (a, b) VALUES :pairs"], {"pairs": rows})
        written += count
    assert len(seen) <= BOUND_ROWS.bit_length()
    assert connection.execute("SELECT count(*), count(DISTINCT a * 10000 + b) FROM pair").fetchone() == (
        written,
        written,
    )
    connection.close()


def test_bound_rows_leave_the_other_parameters_their_places() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE triple (a TEXT, b INTEGER PRIMARY KEY, c TEXT, met INTEGER)")
    rows = [(n, f"row {n}") for n in range(BOUND_ROWS + 700)]
    write = """
        INSERT INTO triple (a, b, c, met)
        SELECT :first, column1, column2, 0 FROM (VALUES :rows)
        WHERE true ON CONFLICT (b) DO UPDATE SET met = :count, a = a || :first || strftime('%H:%M', '12:34')
    """
    count = (
        "UPDATE triple SET met = met + 1 WHERE b IN (SELECT value ->> 0 FROM json_each(:rows)) AND a LIKE :first || '%'"
    )
    for _ in range(2):
        values = {"first": "x", "rows": rows, "count": 5, "of_another_statement": 1}
        run_statements(connection.cursor(), [write, count], values)
    found = connection.execute("SELECT DISTINCT a, c = 'row ' || b, met, count(*) FROM triple").fetchall()
    assert found == [("xx12:34", 1, 6, len(rows))]
    connection.close()


class TestSqliteFile:
    """What can be wrong with a file."""

    def test_rows_that_a_person_deletes_are_new_again(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path / "r.db"), create=True)
        ticket = begin(store, "run-1")
        store.save([classified("a"), classified("b")], MODEL, ticket, max_attempts=3)
        store.open_mark("a" * 32, "0" * 32, ticket)
        store.leave_mark("0" * 32, "all done", ticket)
        store.save([classified("b", etag="2")], MODEL, ticket, max_attempts=3)
        assert store.marks("a" * 32) == {"0" * 32: "all done"}
        with sqlite3.connect(tmp_path / "r.db") as plain:
            plain.execute("DELETE FROM outcome WHERE image_seq = 1")
        plain.close()
        store.leave_mark("0" * 32, "all done", ticket)
        assert store.marks("a" * 32) == {}
        store.close()

    def test_a_store_of_an_earlier_version_is_brought_up_to_date(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "r.db", isolation_level=None) as plain:
            number, name, text = migrations("sqlite")[0]
            plain.execute("CREATE TABLE schema_migration (version INTEGER PRIMARY KEY, name TEXT, applied_at TEXT)")
            plain.execute("INSERT INTO schema_migration VALUES (?, ?, '2026-11-20')", (number, name))
            plain.executescript(text)
            plain.execute(f"PRAGMA user_version = {number}")
            plain.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        plain.close()
        store = open_store(str(tmp_path / "r.db"))
        assert (store.check()["schema_version"], store.marks("a" * 32)) == (1, {})
        store.close()
        store = open_store(str(tmp_path / "r.db"), create=True)
        assert store.check()["schema_version"] == migrations("sqlite")[-1][0]
        store.open_mark("a" * 32, "0" * 32, begin(store, "run-1"))
        assert store.marks("a" * 32) == {"0" * 32: ""}
        store.close()

    def test_the_tables_a_person_queries(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path / "r.db"), create=True)
        store.save([classified("a"), failed("b", TRUNCATED)], MODEL, begin(store, "run-1"), max_attempts=3)
        store.close()
        with sqlite3.connect(tmp_path / "r.db") as plain:
            found = plain.execute(
                "SELECT name FROM image_probability WHERE label = 'damaged' AND probability > 0.7"
            ).fetchall()
            assert found == [("a",)]
            assert plain.execute("SELECT count(*) FROM image_prediction").fetchone() == (2,)
            assert plain.execute("SELECT name, code FROM image_failure").fetchall() == [("b", "truncated")]
            assert plain.execute("SELECT count(*) FROM image").fetchone() == (2,)
            assert plain.execute("SELECT version FROM schema_migration").fetchall() == [(1,), (2,), (3,)]
            plan = plain.execute(
                "EXPLAIN QUERY PLAN SELECT name FROM image_probability WHERE label = 'damaged' AND probability > 0.7"
            ).fetchall()
        plain.close()
        assert not [step for *_, step in plan if step.startswith("SCAN p")], plan  # one stretch, not the whole table

    def test_opening_again_keeps_results(self, tmp_path: Path) -> None:
        for run in ("run-1", "run-2"):
            store = open_store(str(tmp_path / "r.db"), create=True)
            store.save([classified(run)], MODEL, begin(store, run), max_attempts=3)
            store.close()
        assert len(rows(open_store(str(tmp_path / "r.db")), "predictions", task="view")) == 2

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(StoreNotFound, match="no results"):
            open_store(str(tmp_path / "r.db"))
        with pytest.raises(UsageError, match="folder"):
            open_store(str(tmp_path / "no" / "r.db"), create=True)
        assert not list(tmp_path.iterdir())

    def test_an_empty_file_is_no_store_yet(self, tmp_path: Path) -> None:
        """What is left when the first run is killed while it makes its store."""
        (tmp_path / "r.db").touch()
        with pytest.raises(StoreNotFound):
            open_store(str(tmp_path / "r.db"))
        open_store(str(tmp_path / "r.db"), create=True).close()
        with pytest.raises(UsageError, match="is a folder"):
            open_store(str(tmp_path), create=True)

    def test_of_another_program(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "r.db") as other:
            other.execute("CREATE TABLE mine (x)")
        other.close()
        before = (tmp_path / "r.db").read_bytes()
        with pytest.raises(StoreForeign, match="another program"):
            open_store(str(tmp_path / "r.db"), create=True)
        assert (tmp_path / "r.db").read_bytes() == before

    def test_no_database_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "r.db").write_bytes(b"name,label\n" * 500)
        with pytest.raises(StoreForeign, match="not a SQLite database"):
            open_store(str(tmp_path / "r.db"), create=True)

    def test_of_a_newer_vehclass(self, tmp_path: Path) -> None:
        open_store(str(tmp_path / "r.db"), create=True).close()
        with sqlite3.connect(tmp_path / "r.db") as newer:
            newer.execute("PRAGMA user_version = 999")
        newer.close()
        with pytest.raises(StoreForeign, match="newer vehclass"):
            open_store(str(tmp_path / "r.db"))

    def test_locked_by_another_program(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path / "r.db"), create=True, options=StoreOptions(wait=0.2))
        ticket = begin(store, "run-1")
        other = sqlite3.connect(tmp_path / "r.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreBusy, match=r"locked .* for 0\.2 s"):
            store.save([classified("a")], MODEL, ticket, max_attempts=3)
        other.execute("ROLLBACK")
        other.close()
        store.save([classified("a")], MODEL, ticket, max_attempts=3)
        assert new(store, ref("a")) == []

    def test_two_open_it_for_the_first_time_at_once(self, tmp_path: Path) -> None:
        problems: list[BaseException] = []

        def make() -> None:
            try:
                open_store(str(tmp_path / "r.db"), create=True).close()
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []

    @pytest.mark.parametrize(
        "url",
        ["", "sqlite://", "sqlite:///", "postgres://x/y", "sqlite://[x", "mssql://", "cosmos://"],
    )
    def test_urls_that_are_no_store(self, url: str) -> None:
        with pytest.raises(UsageError):
            open_store(url, create=True)


def test_every_store_error_names_a_way_out() -> None:
    texts: list[Callable[[], str]] = [
        lambda: str(StoreNotFound(url="u")),
        lambda: str(StoreForeign(url="u", reason="r")),
        lambda: str(StoreError(url="u", reason="r")),
    ]
    assert all("{" not in text() and text().endswith(".") for text in texts)
