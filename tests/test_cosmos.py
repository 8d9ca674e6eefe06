"""Cosmos DB behind a proxy that answers as the service may: what is repeated, how fast, and what it costs."""

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError

from tests.conftest import SAMPLE, VEHCLASS, Answer, Cosmos, clean_environment, free_port
from tests.faults import Fault, FaultProxy
from tests.test_stores import CONDITION, MODEL, VIEW, begin, classified, failed, new, ref, rows
from vehclass.errors import (
    LeaseHeld,
    LeaseLost,
    ServiceUnreachable,
    StoreAccessDenied,
    StoreError,
    StoreNotFound,
    UsageError,
)
from vehclass.records import LeaseClaim, ModelInfo, Outcome, Prediction, RunTicket, Task
from vehclass.stores import cosmos_runs, open_store
from vehclass.stores.cosmos import CosmosStore
from vehclass.stores.cosmos_account import LONGEST_HINT, _hint, account_of
from vehclass.stores.cosmos_containers import container_plan
from vehclass.stores.cosmos_documents import as_document
from vehclass.stores.cosmos_pace import MOST_IN_FLIGHT, Pace
from vehclass.stores.options import StoreOptions

OPTIONS = StoreOptions(wait=20, timeout=5, cosmos_key=Cosmos.KEY)
SEED = 20261120


@pytest.fixture
def proxy(cosmos: Cosmos) -> Iterator[FaultProxy]:
    with FaultProxy(cosmos.port).running() as made:
        yield made


def opened(port: int, database: str = "", **more: Any) -> CosmosStore:
    name = database or f"d{time.monotonic_ns()}"
    store = open_store(Cosmos(port).url(name), create=True, options=replace(OPTIONS, **more))
    assert isinstance(store, CosmosStore)
    return store


@pytest.fixture
def store(proxy: FaultProxy) -> Iterator[CosmosStore]:
    made = opened(proxy.port)
    yield made
    proxy.rule = lambda method, path: None
    made.close()


@pytest.fixture
def ticket(store: CosmosStore) -> RunTicket:
    return begin(store, "run-1")


def is_write(method: str, path: str) -> bool:
    """A write of results, or a query of them: the service takes both as POST to the same path."""
    return (method == "POST" and path.endswith("/colls/results/docs/")) or (
        "/colls/results/docs" in path and method == "PUT"
    )


def sometimes(share: float, *faults: Fault) -> Callable[[str, str], Fault | None]:
    """The faults in turn, for a share of the writes."""
    chance = random.Random(SEED)
    count = iter(range(10**9))

    def rule(method: str, path: str) -> Fault | None:
        if is_write(method, path) and chance.random() < share:
            return faults[next(count) % len(faults)]
        return None

    return rule


def everything_is_there_once(store: CosmosStore, count: int) -> None:
    names = [row["name"] for row in rows(store, "predictions", task="view")]
    assert sorted(names) == sorted(f"{n}" for n in range(count))
    assert store.counts("run-1").classified == count


class TestRepeated:
    @pytest.mark.parametrize("status", [408, 410, 429, 449, 500, 503])
    def test_what_the_service_says_in_passing(
        self, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket, status: int
    ) -> None:
        proxy.rule = sometimes(0.4, Fault(status=status, headers={"x-ms-retry-after-ms": "20"}))
        store.save([classified(f"{n}") for n in range(60)], MODEL, ticket, max_attempts=3)
        proxy.rule = lambda method, path: None
        everything_is_there_once(store, 60)
        assert store.cost()["repeated"] >= 10

    def test_a_storm_of_429_on_half_of_the_requests(
        self, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket
    ) -> None:
        chance = random.Random(SEED)
        throttled = Fault(status=429, headers={"x-ms-retry-after-ms": "30"})
        proxy.rule = lambda method, path: throttled if chance.random() < 0.5 else None
        for start in range(0, 120, 40):
            store.save([classified(f"{n}") for n in range(start, start + 40)], MODEL, ticket, max_attempts=3)
        proxy.rule = lambda method, path: None
        everything_is_there_once(store, 120)
        assert store.cost()["throttled"] > 30

    @pytest.mark.parametrize("times", [200, pytest.param(1_000, marks=pytest.mark.slow)])
    def test_a_reply_that_is_dropped_after_the_commit(
        self, times: int, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket
    ) -> None:
        dropped: list[str] = []

        def rule(method: str, path: str) -> Fault | None:
            if is_write(method, path) and len(dropped) < times and len(proxy.requests) % 3:
                dropped.append(path)
                return Fault(drop_reply=True)
            return None

        proxy.rule = rule
        half = times * 3 // 4
        batch = [*(classified(f"{n}") for n in range(half)), *(failed(f"x{n}") for n in range(half))]
        store.save(batch, MODEL, ticket, max_attempts=3)
        assert len(dropped) == times
        proxy.rule = lambda method, path: None
        everything_is_there_once(store, half)
        assert [row["attempts"] for row in rows(store, "failures")] == [1] * half

    def test_the_service_says_how_long_to_wait(self, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket) -> None:
        once = iter([Fault(status=429, headers={"x-ms-retry-after-ms": "700"})])
        proxy.rule = lambda method, path: next(once, None) if is_write(method, path) else None
        began = time.monotonic()
        store.save([classified("0")], MODEL, ticket, max_attempts=3)
        assert 0.7 <= time.monotonic() - began < 2.5
        absurd = HttpResponseError("x")
        absurd.headers = {"x-ms-retry-after-ms": "1000000000"}  # type: ignore[attr-defined]
        wait = _hint(absurd)
        assert wait is not None
        assert wait <= LONGEST_HINT + 0.1

    def test_a_lost_lease_answer_is_no_other_run(self, proxy: FaultProxy, store: CosmosStore) -> None:
        once = iter([Fault(drop_reply=True)])
        proxy.rule = lambda method, path: next(once, None) if method == "POST" and "/colls/runs/docs" in path else None
        assert begin(store, "run-1").fence == 1

    def test_a_page_that_fails_while_reading(self, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket) -> None:
        store.save([classified(f"{n}") for n in range(30)], MODEL, ticket, max_attempts=3)
        chance = random.Random(SEED)
        proxy.rule = lambda method, path: Fault(status=503) if chance.random() < 0.4 else None
        everything_is_there_once(store, 30)

    @pytest.mark.parametrize(("status", "detail"), [(404, "1002"), (404, "1013"), (403, "3"), (403, "1008")])
    def test_a_replica_that_is_behind_and_a_region_that_moves(
        self, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket, status: int, detail: str
    ) -> None:
        each = {"GET": 2, "POST": 4}

        def rule(method: str, path: str) -> Fault | None:
            if "/docs" not in path or not each.get(method, 0):
                return None
            each[method] -= 1
            return Fault(status=status, headers={"x-ms-substatus": detail})

        proxy.rule = rule
        store.save([classified("0")], MODEL, ticket, max_attempts=3)
        assert not any(each.values())
        everything_is_there_once(store, 1)

    def test_an_answer_that_does_not_arrive_whole(
        self, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket
    ) -> None:
        store.save([classified("0")], MODEL, ticket, max_attempts=3)
        faults = iter([Fault(change_body=lambda body: body[:-5]), Fault(cut_after=10)])
        proxy.rule = lambda method, path: (
            next(faults, None) if method == "POST" and "/colls/results/docs" in path else None
        )
        everything_is_there_once(store, 1)
        assert next(faults, None) is None

    def test_waiting_for_a_turn_is_not_failing(self, proxy: FaultProxy, cosmos: Cosmos) -> None:
        store = opened(proxy.port, max_ru=40, wait=2)
        ticket = begin(store, "run-1")
        seen: list[str] = []

        def rule(method: str, path: str) -> Fault | None:
            if is_write(method, path):
                seen.append(path)
                if len(seen) == 160:
                    return Fault(status=429, headers={"x-ms-retry-after-ms": "10"})
            return None

        proxy.rule = rule
        save = threading.Thread(
            target=store.save,
            args=([classified(f"{n}") for n in range(180)], MODEL, ticket),
            kwargs={"max_attempts": 3},
        )
        save.start()
        time.sleep(1.0)
        began = time.monotonic()
        store.renew_lease(ticket, 60)  # does not queue behind the writes
        assert time.monotonic() - began < 1.0
        save.join()
        proxy.rule = lambda method, path: None
        everything_is_there_once(store, 180)
        store.close()

    def test_a_lease_that_ran_out_while_writing_writes_no_more(self, store: CosmosStore, ticket: RunTicket) -> None:
        store.held_until[ticket.run_id] = 0.0  # as after a machine that slept
        with pytest.raises(LeaseLost):
            store.save([classified("0")], MODEL, ticket, max_attempts=3)
        assert new(store, ref("0")) == ["0"]
        store.renew_lease(ticket, 60)
        store.save([classified("0")], MODEL, ticket, max_attempts=3)

    def test_a_lease_that_cannot_be_read_is_given_up(
        self, proxy: FaultProxy, store: CosmosStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cosmos_runs, "ROUNDS", 5)

        def rule(method: str, path: str) -> Fault | None:
            if "/colls/runs/docs" not in path:
                return None
            return Fault(status=409) if method == "POST" else Fault(status=404)

        proxy.rule = rule
        with pytest.raises(ServiceUnreachable, match="lease"):
            store.take_lease(LeaseClaim("k", "run-1", "here 1", 60))


class TestGivenUp:
    def test_a_server_that_hangs_is_noticed_in_time(self, proxy: FaultProxy, cosmos: Cosmos) -> None:
        store = opened(proxy.port, timeout=1, wait=3)
        ticket = begin(store, "run-1")
        proxy.rule = lambda method, path: Fault(silent=True)
        began = time.monotonic()
        with pytest.raises(ServiceUnreachable, match="does not answer"):
            store.save([classified("0")], MODEL, ticket, max_attempts=3)
        assert 2 < time.monotonic() - began < 8
        proxy.rule = lambda method, path: None
        assert new(store, ref("0")) == ["0"]
        store.close()

    def test_a_server_that_is_not_there(self) -> None:
        began = time.monotonic()
        with pytest.raises(ServiceUnreachable):
            opened(free_port(), wait=2)
        assert time.monotonic() - began < 10

    def test_a_service_that_stays_busy(self, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket) -> None:
        store._requests._wait = 1.0
        proxy.rule = lambda method, path: Fault(status=429, headers={"x-ms-retry-after-ms": "100"})
        with pytest.raises(ServiceUnreachable, match="raise its throughput"):
            store.save([classified("0")], MODEL, ticket, max_attempts=3)

    @pytest.mark.parametrize(
        ("status", "kind"), [(401, StoreAccessDenied), (403, StoreAccessDenied), (413, StoreError)]
    )
    def test_what_no_repeat_can_mend(
        self, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket, status: int, kind: type[Exception]
    ) -> None:
        proxy.rule = lambda method, path: Fault(status=status) if is_write(method, path) else None
        before = len(proxy.requests)
        with pytest.raises(kind):
            store.save([classified("0")], MODEL, ticket, max_attempts=3)
        assert sum(is_write(*request) for request in proxy.requests[before:]) <= 2  # the SDK looks twice at some

    def test_an_identity_that_may_not_make_containers(self, proxy: FaultProxy) -> None:
        proxy.rule = lambda method, path: (
            Fault(status=403) if method == "POST" and path.rstrip("/").endswith("/dbs") else None
        )
        with pytest.raises(StoreAccessDenied, match="administrator"):
            opened(proxy.port)

    def test_nobody_is_signed_in(self) -> None:
        began = time.monotonic()
        with pytest.raises(StoreAccessDenied, match="nobody is signed in"):
            open_store("cosmos://no-such-account-xyz/fleet", options=StoreOptions())
        assert time.monotonic() - began < 15

    def test_a_store_that_is_deleted_in_mid_run(self, proxy: FaultProxy, store: CosmosStore, ticket: RunTicket) -> None:
        proxy.rule = lambda method, path: Fault(status=404) if is_write(method, path) else None
        with pytest.raises(StoreError, match="no longer there"):
            store.save([classified("0")], MODEL, ticket, max_attempts=3)

    def test_an_outage_is_told_once_in_a_while(self, proxy: FaultProxy) -> None:
        said: list[str] = []
        store = opened(proxy.port, say=said.append, wait=4)
        ticket = begin(store, "run-1")
        proxy.rule = lambda method, path: Fault(status=503) if is_write(method, path) else None
        with pytest.raises(ServiceUnreachable):
            store.save([classified(f"{n}") for n in range(60)], MODEL, ticket, max_attempts=3)
        store.close()
        assert len(said) == 1, said

    def test_there_is_no_store_yet(self, cosmos: Cosmos) -> None:
        with pytest.raises(StoreNotFound):
            open_store(cosmos.url("nowhere"), options=OPTIONS)

    @pytest.mark.parametrize(
        ("url", "options"),
        [
            ("cosmos://account", {}),
            ("cosmos:///db", {}),
            ("cosmos://account/db/more", {}),
            ("cosmos://account/db?x=1", {}),
            ("cosmos://account/db#x", {}),
            ("cosmos://my_account/db", {}),
            ("cosmos:account/db", {}),
            ("cosmos://user:key@account/db", {}),
            ("cosmos://127.0.0.1:1/db", {"cosmos_key": None}),
            ("cosmos://127.0.0.1:1/db", {"cosmos_key": "no base64!"}),
            ("cosmos://a/db", {"cosmos_connection_string": "nonsense"}),
            (
                "cosmos://a/db",
                {"cosmos_connection_string": "AccountEndpoint=https://b.documents.azure.com:443/;AccountKey=eA=="},
            ),
            ("cosmos://a.b.c/db", {"cosmos_connection_string": "AccountEndpoint=http://a.b.c/;AccountKey=eA=="}),
        ],
    )
    def test_wrong_settings_are_told_before_any_work(self, url: str, options: dict[str, str | None]) -> None:
        with pytest.raises(UsageError) as caught:
            open_store(url, options=replace(OPTIONS, **options))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_an_account_is_named_in_short_or_by_its_connection_string() -> None:
    assert account_of("cosmos://fleet/db", OPTIONS).endpoint == "https://fleet.documents.azure.com"
    string = "AccountEndpoint=https://fleet.documents.azure.com:443/;AccountKey=YQ==;"
    account = account_of("cosmos://fleet/db", StoreOptions(cosmos_connection_string=string))
    assert (account.endpoint, account.key) == ("https://fleet.documents.azure.com:443", "YQ==")
    assert "YQ==" not in repr(account) + repr(StoreOptions(cosmos_connection_string=string))


def test_results_of_a_machine_whose_clock_is_ahead_are_read(cosmos: Cosmos) -> None:
    store = opened(cosmos.port)
    store._last_seq = time.time_ns() // 1000 + 3_600_000_000  # an hour
    store.save([classified("a"), classified("b")], MODEL, begin(store, "run-1"), max_attempts=3)
    reader = open_store(store.url, options=OPTIONS)
    assert [row["name"] for row in rows(reader, "predictions", task="view")] == ["a", "b"]  # type: ignore[arg-type]  # any store
    assert len(next(reader.saved())) == 2
    reader.close()
    store.close()


class TestPace:
    def test_more_while_it_goes_well_and_half_at_a_429(self) -> None:
        async def live() -> list[float]:
            pace, sizes = Pace(None), []
            for _ in range(3000):
                await pace.leave(await pace.enter(), throttled=False, good=True)
            sizes.append(pace.window.size)
            for count in (MOST_IN_FLIGHT, 1):
                for began in [await pace.enter() for _ in range(count)]:
                    await pace.leave(began, throttled=True, good=False)
                sizes.append(pace.window.size)
            return sizes

        assert asyncio.run(live()) == [MOST_IN_FLIGHT, MOST_IN_FLIGHT / 2, 1]

    def test_a_budget_of_request_units(self, cosmos: Cosmos) -> None:
        store = opened(cosmos.port, max_ru=60)
        ticket = begin(store, "run-1")
        began = time.monotonic()
        store.save([classified(f"{n}") for n in range(180)], MODEL, ticket, max_attempts=3)
        seconds = time.monotonic() - began
        assert 1.5 <= seconds < 8  # the emulator charges 1 RU a write, and the first second is free
        assert store.cost()["request_units_per_write"] == pytest.approx(1.0)
        store.close()


class TestDocuments:
    def test_one_of_25_labels_is_under_two_kilobytes(self) -> None:
        labels = tuple(f"Manufacturer Model {n:02d}" for n in range(25))
        task = Task("make_model", labels)
        model = ModelInfo("dealer", "0123456789ab", (task,), (224, 224), "")
        shares = tuple(random.Random(SEED).random() / 25 for _ in labels)
        answer = Prediction(task.name, labels[3], shares[3], True, shares)
        source = "https://fleetuploads2026.blob.core.windows.net/uploads"
        image = replace(
            ref("2026/11/20/branch-042/WVWZZZ1JZXW000001-front-left.jpg"), source=source, etag="0x8DCE5A1B2C3D4E5"
        )
        facts = classified("x").facts
        run = "20261120T212346-b52d9d"
        about: dict[str, Any] = {"status": "classified", "attempts": 1, "run_id": run, "at": "2026-11-20T21:23:46.123Z"}
        document = as_document(Outcome(image, facts, (answer,)), model, **about, seq=1_795_208_623_123_456)
        assert len(json.dumps(document, separators=(",", ":"))) < 2048

    def test_the_containers_are_as_the_files_say(self, store: CosmosStore) -> None:
        for name, container in (("results", store._results), ("runs", store._runs)):
            found: dict[str, Any] = store._requests.call(container.read())
            plan = container_plan(name)
            assert found["partitionKey"]["paths"] == [plan["partitionKey"]]
            assert found["indexingPolicy"] == plan["indexingPolicy"]
            assert found["defaultTtl"] == plan["defaultTtl"]
            indexed = {path["path"] for path in plan["indexingPolicy"]["includedPaths"]}
            assert not any("probabilities" in path or path == "/*" for path in indexed)

    def test_containers_that_an_administrator_made_are_an_empty_store(self, store: CosmosStore, cosmos: Cosmos) -> None:
        store._requests.call(store._runs.delete_item("schema", "schema"))
        found = open_store(cosmos.url(store.url.rpartition("/")[2]), options=OPTIONS)
        assert found.check()["integrity"] == "ok"
        assert new(found, ref("a")) == ["a"]  # type: ignore[arg-type]
        found.close()

    def test_runs_and_leases_end_by_themselves(self, store: CosmosStore, ticket: RunTicket) -> None:
        documents = store._requests.call(store._requests.query(store._runs, "SELECT * FROM c"))
        lives = {one["type"]: one.get("ttl") for one in documents}
        assert lives == {"schema": None, "model": None, "run": 400 * 86400, "lease": 7 * 86400}

    def test_probabilities_are_named_by_task_and_label(self, store: CosmosStore, ticket: RunTicket) -> None:
        store.save([classified("a")], MODEL, ticket, max_attempts=3)
        (document,) = store._requests.call(store._requests.query(store._results, "SELECT * FROM c"))
        assert document["predictions"]["condition"]["label"] == "damaged"
        assert set(document["probabilities"]) == {CONDITION.name, VIEW.name}
        assert document["probabilities"]["view"] == {"exterior": 0.9, "interior": 0.1}


def test_only_one_of_many_takes_the_lease(cosmos: Cosmos) -> None:
    stores = [opened(cosmos.port, "race") for _ in range(8)]
    for round_ in range(5):
        won: list[str] = []

        def reach(number: int, key: str, won: list[str] = won) -> None:
            with suppress(LeaseHeld):
                won.append(stores[number].take_lease(LeaseClaim(key, f"run-{number}", f"host-{number} 1", 60)).run_id)

        threads = [threading.Thread(target=reach, args=(number, f"k{round_}")) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
    for store in stores:
        store.close()


class TestFromTheCommandLine:
    def test_a_night_on_cosmos(self, vehclass: Callable[..., Answer], drawn: Path, cosmos: Cosmos) -> None:
        who = {"AZURE_COSMOS_KEY": cosmos.KEY, "VEHCLASS_STORE": cosmos.url(f"night{time.monotonic_ns()}")}
        what = ("-c", drawn, "-m", SAMPLE)
        assert vehclass("store", "check", **who).code == 2
        assert vehclass("store", "init", **who).code == 0
        first = vehclass("classify-batch", *what, "--max-ru", "200", "--json", **who)
        assert first.code == 3, first.err
        assert (first.json["classified"], first.json["failed"]) == (25, 7)
        assert first.json["store_cost"]["writes"] >= 32
        assert first.json["store_cost"]["request_units_per_write"] > 0
        again = vehclass("classify-batch", *what, "--json", **who)
        assert (again.code, again.json["new"]) == (0, 0)
        vehclass("classify-batch", *what, "--json", "--store", "s.db")
        for kind in ("predictions", "probabilities", "failures"):
            exported = []
            for store in (who["VEHCLASS_STORE"], "s.db"):
                words = ("results", "export", "--format", "jsonl", "--what", kind)
                lines = vehclass(*words, **{**who, "VEHCLASS_STORE": store}).out.splitlines()
                kept = [json.loads(line) for line in lines]
                exported.append(
                    sorted(json.dumps({k: v for k, v in one.items() if k not in LATER}, sort_keys=True) for one in kept)
                )
            assert exported[0] == exported[1]
            assert exported[0]
        shown = vehclass("results", "show", json.loads(lines[0])["name"], "--json", **who)
        assert shown.code == 0, shown.err
        report = vehclass("store", "check", "--json", **who).json
        assert (report["outcomes"], report["failures"], report["runs"]) == (32, 7, 2)
        assert "request units" in vehclass("classify-batch", *what, "--retry-failed", **who).out

    def test_a_store_that_is_down_for_the_whole_run(
        self, vehclass: Callable[..., Answer], drawn: Path, cosmos: Cosmos, proxy: FaultProxy
    ) -> None:
        who = {"AZURE_COSMOS_KEY": cosmos.KEY, "VEHCLASS_STORE": Cosmos(proxy.port).url(f"down{time.monotonic_ns()}")}
        command = ("classify-batch", "-c", drawn, "-m", SAMPLE, "--batch-size", 4, "--threads", 1, "--json")
        assert vehclass("store", "init", **who).code == 0
        proxy.rule = lambda method, path: Fault(status=503) if is_write(method, path) else None
        stopped = vehclass(*command, **who, VEHCLASS_STORE_WAIT="2")
        assert stopped.code == 5, stopped.err
        assert "Traceback" not in stopped.err
        proxy.rule = lambda method, path: None
        done = vehclass(*command, **who)
        assert (done.code, done.json["new"], done.json["classified"]) == (3, 32, 25), done.err

    def test_memory_stays_bounded_while_the_store_is_down(
        self, drawn: Path, cosmos: Cosmos, proxy: FaultProxy, tmp_path: Path
    ) -> None:
        """The lanes stop when enough waits for the store, however many photos are left."""
        photos = sorted((drawn / "photos").glob("0*.jpg"))
        uploads = tmp_path / "uploads"
        uploads.mkdir()
        for number in range(3000):
            os.link(photos[number % len(photos)], uploads / f"{number:05d}.jpg")
        where = Cosmos(proxy.port).url(f"down{time.monotonic_ns()}")
        opened_first = open_store(where, create=True, options=OPTIONS)
        opened_first.close()
        proxy.rule = lambda method, path: Fault(status=503) if is_write(method, path) else None
        peaks = {}
        for count, options in ((200, ("--limit", "200")), (3000, ())):
            words = ["classify-batch", "-c", str(uploads), "-m", str(SAMPLE), "--store", where, "--json", *options]
            code = (
                "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
                "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            )
            environment = clean_environment(AZURE_COSMOS_KEY=cosmos.KEY, VEHCLASS_STORE_WAIT="4")
            told = subprocess.run(
                [sys.executable, "-c", code, *VEHCLASS, *words],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            returned, peak = told.stdout.split()
            assert returned == "5", told.stderr
            peaks[count] = int(peak)
        assert peaks[3000] < 1.25 * peaks[200], peaks

    def test_rights_that_are_missing(self, vehclass: Callable[..., Answer], cosmos: Cosmos, proxy: FaultProxy) -> None:
        who = {"AZURE_COSMOS_KEY": cosmos.KEY, "VEHCLASS_STORE": Cosmos(proxy.port).url(f"rights{time.monotonic_ns()}")}
        assert vehclass("store", "init", **who).code == 0
        first = iter([Fault(status=403)])
        proxy.rule = lambda method, path: next(first, None) if is_write(method, path) else None
        checked = vehclass("store", "check", **who)
        assert checked.code == 1
        assert "write to results" in checked.out


LATER = {"run_id", "classified_at", "failed_at"}
