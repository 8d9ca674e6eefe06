"""Where results go: `open_store(url)` chooses by the URL's scheme."""

from pathlib import Path
from urllib.parse import unquote

from vehclass.errors import UsageError
from vehclass.stores.sql import SqlStore


def open_store(url: str, *, create: bool = False, busy_seconds: float = 30.0) -> SqlStore:
    """The store behind a URL: sqlite:///FILE (relative), sqlite:////ABSOLUTE/FILE, or a plain file name.

    With `create`, it is made or brought up to date where needed; otherwise StoreNotFound is raised when
    there is none. sqlite:///:memory: is gone when it is closed. Raises UsageError for what is no store.
    """
    from vehclass.stores.sqlite import SqliteDatabase

    scheme, separator, rest = url.partition("://")
    match scheme if separator else "":
        case "":
            name = url
        case "sqlite":
            if not rest.startswith("/"):
                raise UsageError(reason="A SQLite store is written with three slashes: sqlite:///FILE.")
            name = unquote(rest[1:])
        case "mssql" | "cosmos":
            raise UsageError(reason=f"This version does not write to {scheme}:// yet; use sqlite:///FILE.")
        case _:
            raise UsageError(reason=f"{scheme}:// is no store; name one as sqlite:///FILE.")
    if not name or "\0" in name:
        raise UsageError(reason="The store's name is empty; name a file as sqlite:///FILE.")
    path = None if name == ":memory:" else Path(name)
    return SqlStore(SqliteDatabase(path, create=create, busy_seconds=busy_seconds))
