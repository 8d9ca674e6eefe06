"""Azure SQL (or a SQL Server) as a database for the SQL store: connecting, repeating, running named queries.

A transaction is begun and committed by statements of our own, so that the server itself says whether there
was one to commit; after any error the connection is thrown away, never used on. What is repeated is always
the whole transaction, which the keys make harmless.
"""

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from vehclass.errors import StoreAccessDenied, StoreError, StoreForeign, StoreNotFound, UsageError
from vehclass.stores.azure_sql_errors import CANNOT_OPEN, Hope, Trouble, pause_before
from vehclass.stores.azure_sql_login import Login, login_of, used_up
from vehclass.stores.options import StoreOptions
from vehclass.stores.queries import migrations, named_queries
from vehclass.stores.rows import as_json
from vehclass.stores.sql import Row, SqlStore

T = TypeVar("T")
Results = tuple[list[str], list[Row]]  # names of the columns, rows

DEFAULT_WAIT: Final = 120.0  # seconds; a serverless database that sleeps needs about one minute to wake up
KNOCK_SECONDS: Final = 5.0
OPENING_SILENCE: Final = 10.0  # for a server that nobody answers for at the start: most likely a wrong name
OPENING_REFUSED: Final = 20.0
# These count or read much at once; they get more time.
SLOW: Final = frozenset({"store_counts", "count_outcomes", "count_needs_review", "run_summary", "failure_codes"})
SLOW_TIMES: Final = 20
MOST_REPEATS_NOW: Final = 10
RIGHTS: Final = {
    "image": ("SELECT", "INSERT", "UPDATE"),
    "model": ("SELECT", "INSERT"),
    "task": ("SELECT", "INSERT"),
    "label": ("SELECT", "INSERT"),
    "outcome": ("SELECT", "INSERT", "UPDATE"),
    "prediction": ("SELECT", "INSERT", "DELETE"),
    "probability": ("SELECT", "INSERT", "DELETE"),
    "run": ("SELECT", "INSERT", "UPDATE"),
    "lease": ("SELECT", "INSERT", "UPDATE"),
    "mark": ("SELECT", "INSERT", "UPDATE"),
    "schedule": ("SELECT", "INSERT", "UPDATE"),
    "run_profile": ("SELECT", "INSERT", "UPDATE"),
}


def open_azure_sql(url: str, *, create: bool, options: StoreOptions) -> SqlStore:
    """The store in a database of SQL Server; with `create`, its tables are made or brought up to date."""
    database = AzureSqlDatabase(login_of(url, options), options)
    try:
        database.open(create=create)
    except BaseException:
        database.close()
        raise
    return SqlStore(database)


class AzureSqlDatabase:
    """A database of ours on SQL Server; each thread has a connection of its own."""

    most_rows = 5_000  # from there on SQL Server locks the whole table

    def __init__(
        self,
        login: Login,
        options: StoreOptions,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = login.url
        self._login = login
        self._wait = DEFAULT_WAIT if options.wait is None else options.wait
        self._timeout = max(1, round(options.timeout))
        self._say = options.say
        self._sleep, self._clock = sleep, clock
        self._queries = named_queries("azure_sql")
        self._mine = threading.local()
        self._all: list[Any] = []  # every thread's connection, to be closed at the end
        self._lock = threading.Lock()
        self._met = False  # whether the server has answered before
        self._heard = False  # whether anybody listens there

    def close(self) -> None:
        """Closes every connection."""
        import pyodbc

        with self._lock:
            for connection in self._all:
                try:
                    connection.close()
                except pyodbc.Error:
                    continue  # it was gone already
            self._all.clear()

    def open(self, *, create: bool) -> None:
        """Looks whether the tables are there and ours; raises StoreNotFound or StoreForeign."""
        version, known = self.schema_version, migrations("azure_sql")[-1][0]
        if version < 0:
            raise StoreForeign(url=self.url, reason="it has tables of another program under our names")
        if version > known:
            reason = f"a newer vehclass made it (schema {version}, this one knows {known})"
            raise StoreForeign(url=self.url, reason=reason)
        if version == known:
            return
        if not create:
            if version == 0:
                raise StoreNotFound(url=self.url)
            raise UsageError(
                reason=f"{self.url} is of an older schema; bring it up to date with `vehclass store init`."
            )
        for number, name, text in migrations("azure_sql"):
            self._migrate(number, name, text)

    @property
    def schema_version(self) -> int:
        """The number of the last migration that was applied; 0 when there are no tables."""
        return int(self.query("schema_version")[0][0])

    def query(self, name: str, /, **values: object) -> list[Row]:
        """All rows of a named query."""
        return self._patiently(lambda: self._run(name, values))[1]

    def records(self, name: str, /, **values: object) -> list[dict[str, Any]]:
        """All rows of a named query, as dictionaries by column; times as ISO 8601 text, booleans as 0 and 1."""
        columns, rows = self._patiently(lambda: self._run(name, values))
        return [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]

    def execute(self, name: str, /, **values: object) -> int:
        """Runs a named query that changes rows; returns the number that it ends with, where it tells one."""
        _, rows = self._patiently(lambda: self._run(name, values))
        return int(rows[0][0]) if rows else -1

    def transact(self, work: Callable[[], T]) -> T:
        """Runs `work` in a transaction; all of it again when the server lost it or another was first."""

        def once() -> T:
            self._run("begin_transaction", {})
            self._mine.inside = True
            try:
                result = work()
                self._run("commit_transaction", {})
            except Trouble:
                self._throw_away()  # and with it the transaction
                raise
            except BaseException:
                self._roll_back()
                raise
            finally:
                self._mine.inside = False
            return result

        return self._patiently(once)

    def check(self) -> dict[str, object]:
        """Which rights this user misses. The pages themselves are checked by the service."""
        wanted = [(f"dbo.{table}", right) for table, rights in RIGHTS.items() for right in rights]
        missing = self.query("missing_rights", wanted=wanted)
        return {"integrity": "ok", "missing_rights": [f"{right} on {table}" for table, right in missing]}

    # --- one attempt ---

    def _run(self, name: str, values: Mapping[str, object]) -> Results:
        """Runs a named query once; the last result set that it answers with."""
        query = self._queries[name]
        # A filter may offer more than a query asks for. What is None is declared and not sent: for a marker without
        # a value the driver would ask the server what type it has.
        sent = {one: as_json(values[one]) if isinstance(values[one], list) else values[one] for one in query.parameters}
        given = {one: value for one, value in sent.items() if value is not None}
        declared = ", ".join(f"@{one} {kind}{' = ?' if one in given else ''}" for one, kind in query.parameters.items())
        text = f"SET NOCOUNT ON;\n{f'DECLARE {declared};' if declared else ''}\n{query.text}"
        for one, value in given.items():
            if isinstance(value, str) and _NUL.search(value):
                raise StoreError(url=self.url, reason=f"a NUL character came in {one} of {name}")
        timeout = SLOW_TIMES * self._timeout if name in SLOW else self._timeout
        return self._answer(name, text, list(given.values()), [query.parameters[one] for one in given], timeout)

    def _answer(self, name: str, text: str, values: list[object], kinds: list[str], timeout: int) -> Results:
        import pyodbc

        connection = self._connection()
        try:
            connection.timeout = timeout
            cursor = connection.cursor()
            if values:
                cursor.setinputsizes([_size(kind) for kind in kinds])
                cursor.execute(text, *values)
            else:
                cursor.execute(text)
            found: Results = ([], [])
            more = True
            while more:  # to the end: an error may come after the first answer, an answer after a message
                if cursor.description is not None:
                    found = ([column[0] for column in cursor.description], cursor.fetchall())
                more = cursor.nextset()
            cursor.close()
        except pyodbc.Error as error:
            self._throw_away()
            raise _trouble(name, error) from error
        self._met = True
        return found

    def _connection(self) -> Any:
        """This thread's connection; a new one when there is none or its credential ends soon."""
        import pyodbc

        held, inside = getattr(self._mine, "connection", None), getattr(self._mine, "inside", False)
        if held is None and inside:
            raise Trouble("connect", "08S01", "the connection of this transaction is gone")
        if held is not None and (inside or not used_up(self._mine.until)):
            return held
        self._throw_away()
        if not self._met:
            self._knock()
        attributes, until = self._login.attributes()
        pyodbc.pooling = False  # a pooled connection would keep its first credential
        try:
            made = pyodbc.connect(
                self._login.connection_string, autocommit=True, timeout=self._timeout, attrs_before=attributes
            )
        except pyodbc.Error as error:
            raise _trouble("connect", error) from error
        self._mine.connection, self._mine.until = made, until
        with self._lock:
            self._all.append(made)
        return made

    def _knock(self) -> None:
        """Whether anybody listens there: the driver finds out only when its time is up, and does not say why."""
        if self._login.address is None:
            return
        try:
            socket.create_connection(self._login.address, timeout=min(KNOCK_SECONDS, self._timeout)).close()
            self._heard = True
        except socket.gaierror as error:
            raise Trouble("connect", "08001", "there is no such host") from error
        except (OSError, UnicodeError) as error:
            raise Trouble("connect", "08001", "nobody listens there") from error

    def _throw_away(self) -> None:
        import pyodbc

        held = getattr(self._mine, "connection", None)
        self._mine.connection = None
        if held is None:
            return
        with self._lock:
            if held in self._all:
                self._all.remove(held)
        try:
            held.close()
        except pyodbc.Error:
            return  # it was gone already

    def _roll_back(self) -> None:
        try:
            self._run("roll_back", {})
        except Trouble:
            return  # thrown away, which ends the transaction as well

    # --- again, where that may help ---

    def _patiently(self, work: Callable[[], T]) -> T:
        """Runs `work`, again where that may help; inside of a transaction only the whole of it is repeated."""
        if getattr(self._mine, "inside", False):
            return work()
        began = self._clock()

        def enough(state: RetryCallState) -> bool:
            trouble = state.outcome.exception() if state.outcome else None
            assert isinstance(trouble, Trouble)
            if trouble.hope is Hope.NOW and state.attempt_number >= MOST_REPEATS_NOW:
                return True
            budget = self._wait
            if not self._met and trouble.is_silence and not self._heard:
                budget = min(budget, OPENING_SILENCE)
            if not self._met and CANNOT_OPEN in trouble.numbers:  # most likely a wrong name
                budget = min(budget, OPENING_REFUSED)
            return self._clock() - began + state.upcoming_sleep > budget

        def pause(state: RetryCallState) -> float:
            trouble = state.outcome.exception() if state.outcome else None
            assert isinstance(trouble, Trouble)
            bounds = pause_before(trouble, state.attempt_number)
            return random.uniform(bounds.least, bounds.most)

        def tell(state: RetryCallState) -> None:
            trouble = state.outcome.exception() if state.outcome else None
            if isinstance(trouble, Trouble) and trouble.hope is Hope.LATER:
                self._say(
                    f"{self.url}: {trouble.as_ours(self.url).facts['reason']}; again in {state.upcoming_sleep:.0f} s"
                )

        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, Trouble) and error.hope is not Hope.NONE),
            stop=enough,
            wait=pause,
            before_sleep=tell,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(work)
        except Trouble as trouble:
            raise trouble.as_ours(self.url) from trouble

    # --- making the tables ---

    def _migrate(self, number: int, name: str, text: str) -> None:
        """Applies a migration and its record in one transaction, unless it has been applied meanwhile."""

        def apply() -> None:
            if self.query("lock_migration")[0][0] < 0:
                raise Trouble("lock_migration", "HYT00", "another vehclass is making the tables")
            if self.schema_version < number:
                for batch in batches(text):  # the last of them records it
                    self._answer(name, batch, [], [], SLOW_TIMES * self._timeout)

        try:
            self.transact(apply)
        except StoreAccessDenied as error:
            raise StoreAccessDenied(
                url=self.url,
                reason=f"its tables are not there yet and this user may not make them; an administrator "
                f"runs `vehclass store init --store {self.url}`, or sql/azure_sql/{name}",
            ) from error


def batches(script: str) -> Iterator[str]:
    """The parts of a T-SQL script between lines of GO."""
    for part in re.split(r"(?im)^\s*GO\s*$", script):
        if re.sub(r"(?m)--.*$", "", part).strip():
            yield part


_NUL: Final = re.compile(r"\0|(?<!\\)(?:\\\\)*\\u0000")  # as itself, or as JSON writes it


def _size(kind: str) -> tuple[int, int, int]:
    """A T-SQL type as pyodbc.setinputsizes wants it, so that the driver sends what the query declares."""
    import pyodbc

    name, _, length = kind.partition("(")
    size = 0 if length in ("", "MAX)") else int(length.rstrip(")"))
    types = {
        "NVARCHAR": pyodbc.SQL_WVARCHAR,
        "VARCHAR": pyodbc.SQL_VARCHAR,
        "CHAR": pyodbc.SQL_CHAR,
        "BIGINT": pyodbc.SQL_BIGINT,
        "INT": pyodbc.SQL_INTEGER,
        "BIT": pyodbc.SQL_BIT,
        "FLOAT": pyodbc.SQL_DOUBLE,
    }
    return types[name], size, 0


def _plain(value: object) -> object:
    """A value as every store gives it."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds") + "Z"  # the columns hold UTC
    return int(value) if isinstance(value, bool) else value


def _trouble(statement: str, error: Exception) -> Trouble:
    state, message = (str(error.args[0]), str(error.args[1])) if len(error.args) > 1 else ("", str(error))
    return Trouble(statement, state, message)
