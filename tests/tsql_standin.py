"""Answers for the TDS stand-in out of SQLite: which named query was sent is recognised, and SQLite's of that name is run.

So the contract of every store runs through pyodbc and Microsoft's driver: parameters, types, result sets, times,
transactions, errors. The T-SQL itself is not run by it; that needs a server (VEHCLASS_TEST_MSSQL).
"""

import json
import re
import sqlite3
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tests.tds import Done, Error, Hang, Reply, Request, Reset, Rows, TdsServer
from vehclass.stores import sqlite as ours
from vehclass.stores.azure_sql import AzureSqlDatabase, batches
from vehclass.stores.queries import migrations, named_queries

NAMES = {query.text: name for name, query in named_queries("azure_sql").items()}
MIGRATIONS = {batch for _, _, text in migrations("azure_sql") for batch in batches(text)}
BOUND_IN_SQLITE = {"images", "outcomes", "predictions", "probabilities"}
BITS = {("predictions_between", "needs_review"), ("saved_predictions", "needs_review")}


def name_of(sql: str) -> str:
    """Which named query a request is."""
    if sql in MIGRATIONS:
        return "migration"
    head, _, _ = sql.partition("\n")
    assert head == "SET NOCOUNT ON;", sql[:200]
    return NAMES[sql.split("\n", 2)[2]]


class Engine:
    """The answers; `before` may answer, or raise trouble, in its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made = 0  # the last migration, as far as the client can tell
        ours.SqliteDatabase(path, create=True).close()
        self._connections: dict[int, sqlite3.Connection] = {}
        self._guard = threading.Lock()
        self.before: Callable[[str, Request], Reply | None] = lambda name, request: None
        self.names: list[str] = []

    def answer(self, request: Request) -> Reply:
        if request.sql.startswith(("COMMIT", "ROLLBACK")) and not request.values:
            return Done()
        name = name_of(request.sql)
        self.names.append(name)
        reply = self.before(name, request) or self.run(name, request)
        if isinstance(reply, Error | Reset | Hang):
            self.hang_up(request.connection)  # XACT_ABORT is on, and a connection's end undoes its transaction
        return reply

    def run(self, name: str, request: Request) -> Reply:
        match name:
            case "schema_version":
                return Rows(("version",), [(self._made,)])
            case "lock_migration":
                return Rows(("got",), [(0,)])
            case "migration":
                recorded = re.search(r"INSERT INTO dbo.schema_migration.*\nSELECT (\d+)", request.sql)
                self._made = int(recorded[1]) if recorded else self._made
                return Done()
            case "missing_rights":
                return Rows(("name", "permission"), [])
        connection = self._connection(request.connection)
        try:
            return self._statement(name, request, connection)
        except sqlite3.IntegrityError as error:
            return Error(2627 if "UNIQUE" in str(error) else 547, str(error))

    def _statement(self, name: str, request: Request, connection: sqlite3.Connection) -> Reply:
        match name:
            case "begin_transaction":
                connection.execute("BEGIN IMMEDIATE")
                return Done()
            case "commit_transaction":
                connection.execute("COMMIT")
                return Done()
            case "roll_back":
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                return Done()
        sent = iter(request.values)
        values = {one: next(sent) if bound else None for one, bound in _parameters(request.sql)}
        assert next(sent, None) is None
        cursor = connection.cursor()
        values = {one: json.loads(value) if one in BOUND_IN_SQLITE else value for one, value in values.items()}
        ours.run_statements(cursor, [*ours.statements(named_queries("sqlite")[name].text)], values)
        if name == "renew_lease":
            return Rows(("changed",), [(cursor.rowcount,)])
        if cursor.description is None:
            return Done(max(0, cursor.rowcount))
        columns = tuple(column[0] for column in cursor.description)
        return Rows(
            columns,
            [[_typed(name, column, value) for column, value in zip(columns, row, strict=True)] for row in cursor],
        )

    def _connection(self, number: int) -> sqlite3.Connection:
        with self._guard:
            if number not in self._connections:
                made = sqlite3.connect(self._path, timeout=20, isolation_level=None, check_same_thread=False)
                made.execute("PRAGMA synchronous = OFF")
                self._connections[number] = made
            return self._connections[number]

    def server(self, tls: tuple[Path, Path] | None = None) -> TdsServer:
        """A server that answers out of this."""
        made = TdsServer(answer=self.answer, tls=tls)
        made.ended = self.hang_up
        return made

    def hang_up(self, number: int) -> None:
        """What the server does when a connection ends: its transaction is undone."""
        with self._guard:
            connection = self._connections.pop(number, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        for number in list(self._connections):
            self.hang_up(number)


def _parameters(sql: str) -> list[tuple[str, bool]]:
    """The declared parameters, and whether each came with a value."""
    declared = sql.split("\n", 2)[1].removeprefix("DECLARE ").rstrip(";")
    return [(one, bool(value)) for one, value in re.findall(r"@(\w+) [A-Z]\w+(?:\(\w+\))?( = @P\d+)?", declared)]


def _typed(name: str, column: str, value: object) -> object:
    """A value of SQLite's as the type that the column has on SQL Server."""
    if column.endswith("_at") and isinstance(value, str):
        return datetime.fromisoformat(value).replace(tzinfo=None)
    return bool(value) if (name, column) in BITS else value


__all__ = ["AzureSqlDatabase", "Engine", "name_of"]
