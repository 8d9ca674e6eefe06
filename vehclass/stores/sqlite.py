"""SQLite as a database for the SQL store: opening, migrating, running named queries, and its errors as ours.

One connection, shared by the threads of a process under a lock, with a rollback journal and
synchronous=EXTRA: what was acknowledged survives a power cut. (A transaction ends with the deletion of its
journal; FULL does not sync the folder after that, and a journal that comes back undoes the transaction.) Why not WAL: one writer gains nothing from
it here, it does not work on network shares, and SQLite before 3.51.3 (Debian 12 has 3.40) could corrupt a
database when a WAL was reset.
"""

import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final, TypeVar

from vehclass.errors import StoreBusy, StoreError, StoreForeign, StoreNotFound, UsageError, VehclassError
from vehclass.records import iso, now
from vehclass.stores.queries import migrations, named_queries
from vehclass.stores.rows import as_json
from vehclass.stores.sql import Row

T = TypeVar("T")

APPLICATION_ID: Final = 0x76656863  # 'vehc', in the file's header
BOUND_ROWS: Final = 1024  # of one statement, a power of two: more take no less time each
_BOUND: Final = re.compile(r"VALUES :(\w+)")
_PARAMETER: Final = re.compile(r"(?<![\w:]):([a-z]\w*)")


class SqliteDatabase:
    """A database file of ours, or one in memory (path None)."""

    most_rows = 10**9  # no lock escalates here, however many rows a statement writes

    def __init__(self, path: Path | None, *, create: bool, busy_seconds: float = 30.0) -> None:
        self.url = f"sqlite:///{path or ':memory:'}"
        self._path = path
        self._busy_seconds = busy_seconds
        self._queries = {
            name: [*statements(query.text)] or [query.text] for name, query in named_queries("sqlite").items()
        }
        self._lock = threading.RLock()
        try:
            there = path is None or path.exists()
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise UsageError(
                reason=f"{path} cannot be opened: {error.strerror}. Name another file with --store."
            ) from error
        if path is not None and path.is_dir():
            raise UsageError(reason=f"{path} is a folder; name a file in it with --store.")
        if path is not None and not there:
            if not create:
                raise StoreNotFound(url=self.url)
            if not path.parent.is_dir():
                raise UsageError(
                    reason=f"The folder {path.parent} of the store does not exist. Make it, or name another with --store."
                )
        target = path.absolute().as_uri() + ("?mode=rwc" if create else "?mode=rw") if path else ":memory:"
        if path is not None and create and not _may_write(path):
            raise UsageError(reason=f"{path} cannot be written by this user. Name another file with --store.")
        with self._explained():
            self._connection = sqlite3.connect(
                target, timeout=busy_seconds, isolation_level=None, check_same_thread=False, uri=True
            )
        try:
            self._check_ours(create=create)
            with self._explained():
                self._connection.execute("PRAGMA synchronous = EXTRA")
                if create:
                    self._connection.execute("PRAGMA journal_mode = DELETE").fetchone()
                    self._migrate()
        except VehclassError:
            self._connection.close()
            raise

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            self._connection.close()

    @property
    def schema_version(self) -> int:
        """The number of the last migration that was applied."""
        with self._lock, self._explained():
            return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def query(self, name: str, /, **values: object) -> list[Row]:
        """All rows of a named query."""
        with self._lock, self._explained():
            return self._run(name, values).fetchall()

    def records(self, name: str, /, **values: object) -> list[dict[str, Any]]:
        """All rows of a named query, as dictionaries by column."""
        with self._lock, self._explained():
            cursor = self._run(name, values)
            columns = [column[0] for column in cursor.description]
            return [dict(zip(columns, row, strict=True)) for row in cursor]

    def execute(self, name: str, /, **values: object) -> int:
        """Runs a named query that changes rows; returns how many its last statement changed."""
        with self._lock, self._explained():
            return self._run(name, values).rowcount

    def _run(self, name: str, values: Mapping[str, object]) -> sqlite3.Cursor:
        cursor = self._connection.cursor()
        run_statements(cursor, self._queries[name], values)
        return cursor

    def transact(self, work: Callable[[], T]) -> T:
        """Runs `work`; all that it writes is kept together, or not at all."""
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                result = work()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            return result

    def check(self) -> dict[str, object]:
        """SQLite's own check of the file: 'ok', or the first thing wrong; and whether it may be written."""
        with self._lock, self._explained():
            found = str(self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
        denied = self._path is not None and not _may_write(self._path)
        return {"integrity": found, "missing_rights": ["write to the file or its folder"] if denied else []}

    def _check_ours(self, *, create: bool) -> None:
        with self._explained():
            # One statement, so that it sees one moment: another process may be making the tables just now.
            ident, version, tables = self._connection.execute(
                "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)"
                " FROM pragma_application_id, pragma_user_version"
            ).fetchone()
        if ident != APPLICATION_ID and tables:
            raise StoreForeign(url=self.url, reason="it is a database of another program")
        if version == 0 and not create:  # an empty file, or one that was being made when its maker was killed
            raise StoreNotFound(url=self.url)
        known = migrations("sqlite")[-1][0]
        if ident == APPLICATION_ID and version > known:
            raise StoreForeign(
                url=self.url, reason=f"a newer vehclass made it (schema {version}, this one knows {known})"
            )

    def _migrate(self) -> None:
        """Applies what is missing, each migration and its record in one transaction."""
        if self._connection.execute("PRAGMA user_version").fetchone()[0] == migrations("sqlite")[-1][0]:
            return
        for number, name, text in migrations("sqlite"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if self._connection.execute("PRAGMA user_version").fetchone()[0] < number:
                    self._connection.execute(
                        "CREATE TABLE IF NOT EXISTS schema_migration"
                        " (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TEXT NOT NULL) STRICT"
                    )
                    for statement in statements(text):
                        self._connection.execute(statement)
                    self._connection.execute(
                        "INSERT INTO schema_migration VALUES (?, ?, ?)", (number, name, iso(now()))
                    )
                    self._connection.execute(f"PRAGMA user_version = {number:d}")
                    self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as ours, by its result code."""
        try:
            yield
        except sqlite3.Error as error:
            # The lower eight bits are the kind; the upper ones say where it happened.
            kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreBusy(
                    service=self.url, url=self.url, seconds=f"{self._busy_seconds:g}", reason="locked"
                ) from error
            if kind in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise StoreForeign(url=self.url, reason="it is not a SQLite database, or a damaged one") from error
            raise StoreError(url=self.url, reason=_REASONS.get(kind, str(error))) from error


_REASONS: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "the file or its folder is read-only",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened or made there",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
    sqlite3.SQLITE_PERM: "permission is denied",
}


def run_statements(cursor: sqlite3.Cursor, texts: Sequence[str], values: Mapping[str, object]) -> None:
    """Runs the statements of a named query; a list among its values travels as JSON, or bound where one says `VALUES :name`.

    JSON needs no statement that grows with the rows; rows that are bound take half the time. What a statement with bound
    rows answers is lost.
    """
    written: dict[str, object] = {}  # as JSON, once for all statements
    for text in texts:
        before, rows_name, after = _parameters(text)
        if rows_name is None:
            for name in before:
                if name not in written:
                    value = values[name]
                    written[name] = as_json(value) if isinstance(value, list) else value
            cursor.execute(text, written)
            continue
        rows = values[rows_name]
        assert isinstance(rows, list)
        first, last = [values[name] for name in before], [values[name] for name in after]
        start, most = 0, BOUND_ROWS
        while start < len(rows):
            while most > len(rows) - start:
                most //= 2  # so that there are few statements to prepare, whatever the number of rows
            part = rows[start : start + most]
            cursor.execute(_with_rows(text, most, len(part[0])), [*first, *chain.from_iterable(part), *last])
            start += most


@cache
def _parameters(statement: str) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
    """The parameters that a statement names before its bound rows, the name of these, and what else it names after them."""
    bound = _BOUND.search(statement)
    head, tail = (statement[: bound.start()], statement[bound.end() :]) if bound else (statement, "")
    before, after = (dict.fromkeys(_PARAMETER.findall(part)) for part in (head, tail))
    return (*before,), bound and bound[1], tuple(name for name in after if name not in before)


@cache
def _with_rows(statement: str, rows: int, columns: int) -> str:
    """A statement with places for so many rows; one object each time, by which `sqlite3` finds it prepared.

    The other parameters are numbered around them. Rows are not: each number would be a name, which `sqlite3` looks up
    among all names before it binds a value.
    """
    before, _, after = _parameters(statement)
    in_order = chain(before, repeat("", rows * columns), after)
    numbers = {name: number for number, name in enumerate(in_order, 1)}
    row = f"({', '.join('?' * columns)})"
    filled = _BOUND.sub(f"VALUES {', '.join([row] * rows)}", statement)
    return _PARAMETER.sub(lambda found: f"?{numbers[found[1]]}", filled)


def _may_write(path: Path) -> bool:
    """Whether the file, and the folder that its journal goes into, can be written."""
    return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one, so that all of them fit in one transaction."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
