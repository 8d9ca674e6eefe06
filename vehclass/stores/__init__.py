"""Where results go: `open_store(url)` chooses by the URL's scheme."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from vehclass.errors import UsageError
from vehclass.stores.sql import SqlStore


def open_store(url: str, *, create: bool = False, busy_seconds: float = 30.0) -> SqlStore:
    """The store behind a URL: sqlite:///FILE (relative), sqlite:////ABSOLUTE/FILE, or a plain file name.

    With `create`, it is made or brought up to date where needed; otherwise StoreNotFound is raised when
    there is none. Raises UsageError for a scheme that is not known.
    """
    from vehclass.stores.sqlite import SqliteDatabase

    scheme = urlsplit(url).scheme if "://" in url else ""
    match scheme:
        case "" if url:
            path: Path | None = Path(url)
        case "sqlite":
            name = unquote(url.removeprefix("sqlite://").removeprefix("/"))
            path = Path(name) if name else None
        case "mssql" | "cosmos":
            raise UsageError(reason=f"This version does not write to {scheme}:// yet; use sqlite:///FILE.")
        case _:
            raise UsageError(reason=f"{url or 'An empty text'} is no store; name one as sqlite:///FILE.")
    return SqlStore(SqliteDatabase(path, create=create, busy_seconds=busy_seconds))
