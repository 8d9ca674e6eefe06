"""Azure SQL through pyodbc and Microsoft's driver: what is repeated and when, what fails at once, how it signs in."""

import json
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import SAMPLE, Answer, free_port
from tests.tds import Error, Hang, Info, Login, Reply, Request, Reset, Rows, TdsServer, self_signed
from tests.test_stores import MODEL, TRUNCATED, WHEN, begin, classified, failed, new, ref, rows
from tests.tsql_standin import Engine
from vehclass.errors import (
    ExitCode,
    ServiceUnreachable,
    StoreAccessDenied,
    StoreError,
    StoreForeign,
    StoreNotFound,
    UsageError,
    VehclassError,
)
from vehclass.records import ResultFilter, RunEnd, RunTicket
from vehclass.stores import azure_sql_login, open_store
from vehclass.stores.azure_sql import AzureSqlDatabase
from vehclass.stores.azure_sql_errors import TRANSIENT, Trouble
from vehclass.stores.azure_sql_login import Login as Credentials
from vehclass.stores.azure_sql_login import login_of, parse_keywords
from vehclass.stores.options import StoreOptions
from vehclass.stores.sql import SqlStore


@dataclass
class Clock:
    """A present that only moves when somebody sleeps."""

    at: float = 0.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds

    def __call__(self) -> float:
        return self.at


@dataclass
class Bench:
    """A store on the stand-in, with a clock in its hands and a place to put trouble."""

    store: SqlStore
    engine: Engine
    server: TdsServer
    clock: Clock
    said: list[str]

    def trouble(self, statement: str, *replies: Reply | None) -> None:
        """What the next runs of a statement are answered with; None lets one pass."""
        waiting = list(replies)

        def before(name: str, request: Request) -> Reply | None:
            return waiting.pop(0) if name == statement and waiting else None

        self.engine.before = before

    def always(self, statement: str, reply: Reply) -> None:
        self.engine.before = lambda name, request: reply if name == statement else None

    def times(self, statement: str) -> int:
        return self.engine.names.count(statement)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    engine, clock, said = Engine(tmp_path / "behind.db"), Clock(), list[str]()
    server = engine.server()
    with server.running():
        options = StoreOptions(wait=120, timeout=2, say=said.append)
        login = login_of(f"mssql://sa:secret@127.0.0.1:{server.port}/db?encrypt=no", options)
        database = AzureSqlDatabase(login, options, sleep=clock.sleep, clock=clock)
        database.open(create=True)
        store = SqlStore(database)
        yield Bench(store, engine, server, clock, said)
        store.close()
        engine.close()


@pytest.fixture
def ticket(bench: Bench) -> RunTicket:
    return begin(bench.store, "run-1")


def save(bench: Bench, ticket: RunTicket) -> None:
    bench.store.save([classified("a"), failed("b")], MODEL, ticket, max_attempts=3)


def is_saved_once(bench: Bench) -> None:
    bench.engine.before = lambda name, request: None
    assert new(bench.store, ref("a"), ref("b"), ref("c")) == ["b", "c"]
    assert bench.store.counts("run-1").done == 2
    assert [row["attempts"] for row in rows(bench.store, "failures")] == [1]


class TestRepeated:
    @pytest.mark.parametrize("number", sorted(TRANSIENT))
    def test_every_transient_number(self, bench: Bench, ticket: RunTicket, number: int) -> None:
        bench.trouble("save_outcomes", Error(number))
        save(bench, ticket)
        (pause,) = bench.clock.slept
        assert (10 if number == 40501 else 5) <= pause <= (20 if number == 40501 else 10)
        assert bench.times("save_images") == 2  # the whole batch, not the statement
        assert str(number) in bench.said[0]
        is_saved_once(bench)

    @pytest.mark.parametrize(
        "reply", [Reset(), Hang(deaf=False), Error(40613, severity=20)], ids=["reset", "hang", "fatal"]
    )
    @pytest.mark.parametrize("statement", ["begin_transaction", "holds_lease", "save_outcomes", "commit_transaction"])
    def test_a_connection_that_goes_away(self, bench: Bench, ticket: RunTicket, statement: str, reply: Reply) -> None:
        before = len(bench.server.logins)
        bench.trouble(statement, reply)
        save(bench, ticket)
        assert len(bench.clock.slept) == 1
        assert len(bench.server.logins) == before + 1  # thrown away, not used on
        is_saved_once(bench)

    @pytest.mark.parametrize("times", [200, pytest.param(1_000, marks=pytest.mark.slow)])
    def test_a_commit_whose_answer_is_lost(self, times: int, bench: Bench, ticket: RunTicket) -> None:
        chance = random.Random(20261120)
        lost = 0
        bench.store._db._wait = 1e6  # type: ignore[attr-defined]

        def before(name: str, request: Request) -> Reply | None:
            nonlocal lost
            if name == "commit_transaction" and lost < times and chance.random() < 0.8:
                lost += 1
                bench.engine.run(name, request)
                return Reset()
            return None

        bench.engine.before = before
        for number in range(times // 2):
            bench.store.save([classified(f"{number}"), failed(f"x{number}")], MODEL, ticket, max_attempts=3)
        while lost < times:
            save(bench, ticket)
        bench.engine.before = lambda name, request: None
        assert {row["attempts"] for row in rows(bench.store, "failures")} == {1}
        predicted = [row["name"] for row in rows(bench.store, "predictions", task="view")]
        assert len(predicted) == len(set(predicted)) >= times // 2

    @pytest.mark.parametrize("number", [2627, 2601, 3960])
    def test_another_writer_was_first(self, bench: Bench, ticket: RunTicket, number: int) -> None:
        bench.trouble("save_images", Error(number, severity=14), Error(number, severity=14))
        save(bench, ticket)
        assert max(bench.clock.slept) < 2
        is_saved_once(bench)

    def test_another_writer_is_always_first(self, bench: Bench, ticket: RunTicket) -> None:
        bench.always("save_images", Error(2627, severity=14))
        with pytest.raises(ServiceUnreachable):
            save(bench, ticket)
        assert len(bench.clock.slept) == 9

    def test_pauses_grow_to_a_minute_within_the_budget(self, bench: Bench, ticket: RunTicket) -> None:
        bench.always("save_images", Error(40613))
        bench.store._db._wait = 1000.0  # type: ignore[attr-defined]
        with pytest.raises(ServiceUnreachable, match=r"busy or not ready.*40613.*later") as caught:
            save(bench, ticket)
        assert caught.value.exit_code is ExitCode.UNREACHABLE
        pauses = bench.clock.slept
        assert all(5 <= pause <= min(60, 5 * 2 ** (n + 1)) for n, pause in enumerate(pauses))
        assert max(pauses) > 20
        assert len({round(pause, 6) for pause in pauses}) == len(pauses)  # jitter
        assert bench.clock.at <= 1000
        bench.engine.before = lambda name, request: None
        assert new(bench.store, ref("a")) == ["a"]

    def test_the_lease_is_taken_once_though_the_answer_was_lost(self, bench: Bench) -> None:
        lost = []

        def before(name: str, request: Request) -> Reply | None:
            if name == "commit_transaction" and not lost and bench.times("take_lease"):
                lost.append(bench.engine.run(name, request))
                return Reset()
            return None

        bench.engine.before = before
        assert begin(bench.store, "run-1").fence == 1
        assert lost
        assert begin(bench.store, "run-2").fence == 2

    @pytest.mark.parametrize(
        ("statement", "reply"),
        [
            (
                "save_images",
                Error(0, "A severe error occurred on the current command. The results should be discarded."),
            ),
            ("save_images", Error(33557097, "terminating connection due to administrator command")),
            (
                "commit_transaction",
                Error(3902, "The COMMIT TRANSACTION request has no corresponding BEGIN TRANSACTION."),
            ),
        ],
    )
    def test_a_server_that_goes_down_says_so_in_its_own_words(
        self, bench: Bench, ticket: RunTicket, statement: str, reply: Reply
    ) -> None:
        bench.trouble(statement, reply)
        save(bench, ticket)
        assert len(bench.clock.slept) == 1
        is_saved_once(bench)

    def test_a_lock_on_the_tables_that_somebody_keeps(self, bench: Bench) -> None:
        bench.engine._made = 0
        bench.trouble("lock_migration", Rows(("got",), [(-1,)]), Rows(("got",), [(-1,)]))
        before = len(bench.server.logins)
        bench.store._db.open(create=True)  # type: ignore[attr-defined]
        assert len(bench.clock.slept) == 2
        assert len(bench.server.logins) == before + 2  # no transaction is begun inside of one that was left
        assert bench.store._db.schema_version == 3

    def test_an_answer_behind_a_message_is_found(self, bench: Bench) -> None:
        """As sp_getapplock's -1 comes when its time is up."""
        bench.server.answer = lambda request: [Info(0, "waited in vain"), Rows(("got",), [(-1,)])]
        assert [tuple(row) for row in bench.store._db.query("lock_migration")] == [(-1,)]

    def test_a_reader_is_repeated_too(self, bench: Bench, ticket: RunTicket) -> None:
        save(bench, ticket)
        bench.trouble("runs", Error(40197), Reset())
        assert len(bench.store.runs(limit=1)) == 1
        assert len(bench.clock.slept) == 2


class TestFailsAtOnce:
    @pytest.mark.parametrize(
        ("number", "kind", "words"),
        [
            (229, StoreAccessDenied, "rights"),
            (40615, UsageError, "firewall"),
            (208, StoreNotFound, "no results"),
            (2714, StoreForeign, "another program"),
            (547, StoreError, r"save_images, error 547"),
            (8114, StoreError, r"save_images, error 8114"),
            (40544, StoreError, "full"),
        ],
    )
    def test_a_permanent_number(
        self, bench: Bench, ticket: RunTicket, number: int, kind: type[VehclassError], words: str
    ) -> None:
        bench.always("save_images", Error(number, "It was refused.", severity=16))
        with pytest.raises(kind, match=words):
            save(bench, ticket)
        assert bench.clock.slept == []
        assert bench.times("save_images") == 1
        assert "commit_transaction" not in bench.engine.names[bench.engine.names.index("save_images") :]

    def test_a_number_in_a_name_is_no_error_number(self) -> None:
        said = (
            "[22001] [Microsoft][ODBC Driver 18 for SQL Server][SQL Server]String or binary data would be truncated in "
            "column 'x'. Truncated value: 'IMG (1205) x'. (2628) (SQLExecDirectW); [22001] [Microsoft][ODBC Driver 18 for "
            "SQL Server][SQL Server]The statement has been terminated. (3621)"
        )
        assert Trouble("save_images", "22001", said).numbers == {2628, 3621}

    def test_a_database_that_is_not_there(self, bench: Bench) -> None:
        bench.server.login = lambda login: Error(4060, "Cannot open database.", severity=11)
        began = time.monotonic()
        with pytest.raises(ServiceUnreachable, match="none of that name"):
            open_store(f"mssql://sa:secret@127.0.0.1:{bench.server.port}/no?encrypt=no", options=StoreOptions(wait=2))
        assert time.monotonic() - began < 10

    def test_a_login_that_is_refused(self, bench: Bench) -> None:
        bench.server.login = lambda login: Error(18456, "Login failed for user 'sa'.", severity=14)
        with pytest.raises(StoreAccessDenied, match="does not let this user in"):
            open_store(f"mssql://sa:wrong@127.0.0.1:{bench.server.port}/db?encrypt=no", options=StoreOptions(wait=5))

    def test_a_lease_that_was_lost_writes_nothing(self, bench: Bench, ticket: RunTicket) -> None:
        begin(bench.store, "run-2")
        with pytest.raises(VehclassError, match="took over"):
            save(bench, ticket)
        assert bench.engine.names[-1] == "roll_back"

    def test_a_nul_never_reaches_the_server(self, bench: Bench, ticket: RunTicket) -> None:
        with pytest.raises(StoreError, match="NUL"):
            bench.store.save([classified("a", etag="1\0")], MODEL, ticket, max_attempts=3)
        bench.store.save([classified("back\\u0000slash")], MODEL, ticket, max_attempts=3)

    @pytest.mark.parametrize("share", [float("nan"), float("inf"), 1.5, -0.1])
    def test_what_is_no_probability_never_reaches_the_server(
        self, bench: Bench, ticket: RunTicket, share: float
    ) -> None:
        with pytest.raises(StoreError, match="probability of"):
            bench.store.save([classified("a", share=share)], MODEL, ticket, max_attempts=3)
        assert "save_images" not in bench.engine.names

    def test_of_a_newer_vehclass_and_of_none(self, bench: Bench) -> None:
        url = f"mssql://sa:secret@127.0.0.1:{bench.server.port}/db?encrypt=no"
        for version, kind in ((99, StoreForeign), (-1, StoreForeign), (0, StoreNotFound)):
            bench.always("schema_version", Rows(("version",), [(version,)]))
            with pytest.raises(kind):
                open_store(url, options=StoreOptions(wait=5))

    def test_tables_that_this_user_may_not_make(self, bench: Bench) -> None:
        url = f"mssql://sa:secret@127.0.0.1:{bench.server.port}/db?encrypt=no"
        bench.engine._made = 0
        bench.always("migration", Error(262, "CREATE TABLE permission denied in database 'db'."))
        with pytest.raises(StoreAccessDenied, match=r"administrator.*store init --store mssql://127.0.0.1"):
            open_store(url, create=True, options=StoreOptions(wait=5))


def test_round_trips_do_not_grow_with_the_batch(bench: Bench, ticket: RunTicket) -> None:
    counts = []
    for size in (1, 10, 900):
        before = len(bench.engine.names)
        batch = [classified(f"{size}/{n}") for n in range(size)]
        bench.store.save([*batch, failed(f"{size}/x", TRUNCATED)], MODEL, ticket, max_attempts=3)
        counts.append(len(bench.engine.names) - before)
    assert counts == [5, 5, 5]
    before = len(bench.engine.names)
    page = [ref(f"900/{n}") for n in range(5000)]
    assert len(new(bench.store, *page)) == 4100
    assert len(bench.engine.names) - before == 1


def test_what_is_none_is_no_question_to_the_server(bench: Bench, ticket: RunTicket) -> None:
    save(bench, ticket)
    rows(bench.store, "predictions")
    bench.store.end_run("run-1", RunEnd("done", 0, None, 2, 2))
    assert not [request for request in bench.server.requests if "describe" in request.sql]
    assert bench.store.runs(limit=1)[0]["message"] is None


def test_no_null_travels_in_json(bench: Bench, ticket: RunTicket) -> None:
    """Databases differ in what they make of one."""
    save(bench, ticket)
    bench.store.restore_runs([{**bench.store.runs(limit=1)[0], "run_id": "run-0"}])
    sent = [value for request in bench.server.requests for value in request.values if str(value).startswith("[")]
    assert sent
    assert not any("null" in str(value) for value in sent)
    assert bench.store.runs(limit=1, run_id="run-0")[0]["finished_at"] is None


def test_times_and_names_arrive_as_they_are(bench: Bench, ticket: RunTicket) -> None:
    bench.store.save([classified("Auto/🚗 ä'; DROP TABLE image; --\n.jpg")], MODEL, ticket, max_attempts=3)
    (row,) = rows(bench.store, "predictions", task="view")
    assert row["name"] == "Auto/🚗 ä'; DROP TABLE image; --\n.jpg"
    assert row["classified_at"].endswith("Z")
    held = next(bench.store.saved())[0]
    assert held.outcome.ref.modified_at == WHEN


class TestSigningIn:
    def test_a_token_and_a_new_one_before_it_ends(self, bench: Bench) -> None:
        def token() -> Any:
            return SimpleNamespace(token="tök.en", expires_on=1e12)

        string = parse_keywords(
            login_of(f"mssql://a:b@127.0.0.1:{bench.server.port}/db?encrypt=no", StoreOptions()).connection_string
        )
        string = {name: value for name, value in string.items() if name not in ("UID", "PWD")}
        credentials = Credentials("mssql://x/db", azure_sql_login._joined(string), token=token)
        before = len(bench.server.logins)
        database = AzureSqlDatabase(credentials, StoreOptions(timeout=5))
        database.query("sources")
        database.query("sources")
        assert [login.access_token for login in bench.server.logins[before:]] == ["tök.en"]
        database._mine.until = 0.0  # as if its token were about to end
        database.query("sources")
        assert len(bench.server.logins) - before == 2

        def long_work() -> None:
            database._mine.until = 0.0
            database.query("sources")  # a transaction stays on its connection

        database.transact(long_work)
        assert len(bench.server.logins) - before == 2
        database.close()

    def test_the_token_is_packed_as_the_driver_wants_it(self) -> None:
        packed, until = Credentials("u", "", token=lambda: SimpleNamespace(token="ab", expires_on=9e9)).attributes()
        assert packed == {1256: struct.pack("<I", 4) + b"a\0b\0"}
        assert until == 9e9 - 300
        _, until = Credentials("u", "", token=lambda: SimpleNamespace(token="ab", expires_on=1)).attributes()
        assert until > time.time() + 50  # not for each statement anew

    def test_a_password_with_everything_in_it(self, bench: Bench) -> None:
        word = "p;w}d={x}%20&"
        options = StoreOptions(sql_user="night", sql_password=word, timeout=5)
        open_store(f"mssql://127.0.0.1:{bench.server.port}/db?encrypt=no", options=options).close()
        assert (bench.server.logins[-1].user, bench.server.logins[-1].password) == ("night", word)

    def test_a_whole_connection_string(self, bench: Bench) -> None:
        string = f"Server=tcp:127.0.0.1,{bench.server.port};Database=db;Uid=night;Pwd={{a;b}};Encrypt=no"
        store = open_store("mssql://", options=StoreOptions(sql_connection_string=string, timeout=5))
        assert store.url == f"mssql://127.0.0.1:{bench.server.port}/db"
        store.close()
        login: Login = bench.server.logins[-1]
        assert (login.user, login.password, login.database, login.app) == ("night", "a;b", "db", "vehclass")

    def test_encryption_is_on_unless_turned_off_by_name(self) -> None:
        for url, string in (
            ("mssql://u:p@server/db", None),
            ("mssql://", "Server=server;Database=db;Uid=u;Pwd=p"),
        ):
            made = parse_keywords(login_of(url, StoreOptions(sql_connection_string=string)).connection_string)
            assert made["Encrypt"] == "yes"
            assert made.get("TrustServerCertificate", "no") == "no"

    def test_a_server_without_encryption_is_not_spoken_to(self, bench: Bench) -> None:
        with pytest.raises((ServiceUnreachable, UsageError)):
            open_store(f"mssql://sa:secret@127.0.0.1:{bench.server.port}/db", options=StoreOptions(wait=0, timeout=3))
        assert not [login for login in bench.server.logins if login.encrypt_asked not in (0, 2)]

    @pytest.mark.parametrize(
        ("url", "options"),
        [
            ("mssql://server", {}),
            ("mssql://u:p@server,1433/db", {}),
            ("mssql:///db", {}),
            ("mssql://u@server/db", {}),
            ("mssql://server/db?encrypt=no", {}),
            ("mssql://server/db?trust_server_certificate=yes", {}),
            ("mssql://u:p@server/db?encrypt=maybe", {}),
            ("mssql://u:p@server/db?encyrpt=no", {}),
            ("mssql://", {"sql_connection_string": "Server=x"}),
            ("mssql://", {"sql_connection_string": "nonsense"}),
            ("mssql://other/db", {"sql_connection_string": "Server=x;Database=db;Uid=u;Pwd=p"}),
            ("mssql://x/other", {"sql_connection_string": "Server=x;Database=db;Uid=u;Pwd=p"}),
        ],
    )
    def test_wrong_settings_are_told_before_any_work(self, url: str, options: dict[str, str]) -> None:
        with pytest.raises(UsageError) as caught:
            open_store(url, options=StoreOptions(**options))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    def test_without_a_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import pyodbc

        monkeypatch.setattr(pyodbc, "drivers", list)
        monkeypatch.setattr(azure_sql_login, "_packaged_driver", lambda: None)
        with pytest.raises(UsageError, match=r"pip install 'vehclass\[azure-sql\]'"):
            login_of("mssql://u:p@server/db", StoreOptions())


class TestFromTheCommandLine:
    def test_a_night_on_azure_sql(self, vehclass: Callable[..., Answer], drawn: Path, tmp_path: Path) -> None:
        engine = Engine(tmp_path / "behind.db")
        server = engine.server()
        with server.running():
            url = f"mssql://127.0.0.1:{server.port}/db?encrypt=no"
            who = {"AZURE_SQL_USER": "night", "AZURE_SQL_PASSWORD": "canary-7", "VEHCLASS_STORE": url}
            what = ("-c", drawn, "-m", SAMPLE, "--json")
            assert vehclass("store", "check", **who).code == 2
            first = vehclass("classify-batch", *what, **who)
            assert first.code == 3, first.err
            assert (first.json["classified"], first.json["failed"]) == (25, 7)
            assert first.json["store"] == f"mssql://127.0.0.1:{server.port}/db"
            assert vehclass("classify-batch", *what, **who).json["new"] == 0
            vehclass("classify-batch", *what, "--store", "s.db")
            exported = []
            for store in (url, "s.db"):
                answer = vehclass(
                    "results",
                    "export",
                    "--format",
                    "jsonl",
                    "--what",
                    "probabilities",
                    **{**who, "VEHCLASS_STORE": store},
                )
                lines = [json.loads(line) for line in answer.out.splitlines()]
                exported.append(sorted((one["name"], one["task"], one["label"], one["probability"]) for one in lines))
            assert exported[0] == exported[1]
            assert len(exported[0]) == 25 * 10
            assert vehclass("store", "check", "--json", **who).json["missing_rights"] == []
            assert vehclass("doctor", "--store", url, **who).code == 0
        engine.close()

    def test_a_server_that_dies_in_the_middle(
        self, vehclass: Callable[..., Answer], drawn: Path, tmp_path: Path
    ) -> None:
        engine = Engine(tmp_path / "behind.db")
        server = engine.server()
        many = tmp_path / "many"
        for number in range(8):  # more than are saved together
            shutil.copytree(drawn, many / str(number))
        engine.before = lambda name, request: (
            Reset() if name == "save_outcomes" and engine.names.count("save_outcomes") > 1 else None
        )
        with server.running():
            url = f"mssql://night:canary-7@127.0.0.1:{server.port}/db?encrypt=no"
            command = (
                "classify-batch",
                "-c",
                many,
                "-m",
                SAMPLE,
                "--store",
                url,
                "--batch-size",
                4,
                "--threads",
                1,
                "--json",
            )
            stopped = vehclass(*command, VEHCLASS_STORE_WAIT="6")
            assert stopped.code == 5, stopped.err
            assert "closed the connection" in stopped.err
            assert "Traceback" not in stopped.err
            engine.before = lambda name, request: None
            again = vehclass(*command)
            assert again.code == 3, again.err
            assert (
                len(vehclass("results", "list", "--store", url, "--task", "view", "--limit", 999, "--json").json)
                == 8 * 25
            )
        engine.close()

    def test_a_server_that_is_not_there(self, vehclass: Callable[..., Answer], drawn: Path) -> None:
        url = f"mssql://night:canary-7@127.0.0.1:{free_port()}/db?encrypt=no"
        answer = vehclass("classify-batch", "-c", drawn, "-m", SAMPLE, "--store", url, VEHCLASS_STORE_WAIT="1")
        assert answer.code == 5
        assert "cannot be reached: nobody listens there" in answer.err
        assert "canary" not in answer.err + answer.out


def test_a_certificate_that_nobody_trusts(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("no openssl command to make a certificate with")
    engine = Engine(tmp_path / "behind.db")
    server = engine.server(tls=self_signed(tmp_path))
    with server.running():
        url = f"mssql://sa:secret@localhost:{server.port}/db"
        with pytest.raises(UsageError, match=r"certificate .* is not trusted.*trust_server_certificate=yes"):
            open_store(url, options=StoreOptions(wait=5, timeout=5))
        assert server.logins == []  # no password went to whoever that is
        open_store(f"{url}?trust_server_certificate=yes", create=True, options=StoreOptions(wait=5, timeout=5)).close()
        assert server.logins[-1].encrypt_asked in (1, 3)
    engine.close()


def test_rights_that_are_missing(vehclass: Callable[..., Answer], tmp_path: Path) -> None:
    engine = Engine(tmp_path / "behind.db")
    engine.before = lambda name, request: (
        Rows(("name", "permission"), [("dbo.outcome", "UPDATE"), ("dbo.run", "INSERT")])
        if name == "missing_rights"
        else None
    )
    with engine.server().running() as server:
        url = f"mssql://sa:secret@127.0.0.1:{server.port}/db?encrypt=no"
        open_store(url, create=True, options=StoreOptions(timeout=5)).close()
        checked = vehclass("store", "check", "--store", url)
        assert checked.code == 1
        assert "UPDATE on dbo.outcome, INSERT on dbo.run" in checked.out
        doctor = vehclass("doctor", "--store", url, "--json")
        assert doctor.code == 1
        assert "UPDATE on dbo.outcome" in doctor.out
    engine.close()


def test_another_driver_that_the_connection_string_names(tmp_path: Path) -> None:
    import pyodbc

    if "FreeTDS" not in pyodbc.drivers():
        pytest.skip("FreeTDS is not installed (Debian: tdsodbc)")
    engine = Engine(tmp_path / "behind.db")
    with engine.server().running() as server:
        string = f"Driver=FreeTDS;Server=127.0.0.1;Port={server.port};Database=db;Uid=sa;Pwd=secret;TDS_Version=7.4;Encrypt=no"
        store = open_store("mssql://", create=True, options=StoreOptions(sql_connection_string=string, timeout=5))
        ticket = begin(store, "run-1")
        store.save([classified("Auto/🚗 ä.jpg"), failed("b")], MODEL, ticket, max_attempts=3)
        assert [row["name"] for row in store.results("predictions", ResultFilter(task="view"))] == ["Auto/🚗 ä.jpg"]
        assert new(store, ref("Auto/🚗 ä.jpg"), ref("b")) == ["b"]
        store.close()
    engine.close()
