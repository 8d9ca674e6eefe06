"""Where results go: `open_store(url)` chooses by the URL's scheme."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from vehclass.errors import UsageError
from vehclass.records import (
    Counts,
    ImageRef,
    LeaseClaim,
    ModelInfo,
    Outcome,
    ResultFilter,
    RunEnd,
    RunStart,
    RunTicket,
    Saved,
    ScheduleNote,
)
from vehclass.stores.options import StoreOptions


class Store(Protocol):
    """What every store does; the promises are written in tests/test_stores.py, which each of them passes."""

    url: str  # without secrets

    # A run's side, described in batch/ports.py.
    def unseen(self, refs: Sequence[ImageRef], model: ModelInfo, *, retry_failed: bool) -> list[ImageRef]: ...
    def save(self, outcomes: Sequence[Outcome], model: ModelInfo, ticket: RunTicket, *, max_attempts: int) -> None: ...
    def take_lease(self, claim: LeaseClaim) -> RunTicket: ...
    def renew_lease(self, ticket: RunTicket, seconds: int) -> None: ...
    def free_lease(self, ticket: RunTicket) -> None: ...
    def start_run(self, start: RunStart, model: ModelInfo) -> None: ...
    def end_run(self, run_id: str, end: RunEnd) -> None: ...
    def counts(self, run_id: str) -> Counts: ...
    def marks(self, group: str) -> dict[str, str]: ...
    def open_mark(self, group: str, key: str, ticket: RunTicket) -> None: ...
    def drop_marks(self, keys: Sequence[str], ticket: RunTicket) -> None: ...
    def leave_mark(self, key: str, mark: str, ticket: RunTicket) -> None: ...

    # A scheduler's side, described in schedule/night.py.
    def beat_schedule(self, note: ScheduleNote) -> None: ...
    def end_due(self, name: str, due: str, last: str, ticket: RunTicket) -> None: ...
    def schedules(self) -> list[dict[str, Any]]: ...

    # A reader's side.
    def runs(self, *, limit: int, run_id: str | None = None, failed: bool = False) -> list[dict[str, Any]]:
        """Runs, the latest first."""
        ...

    def run_profile(self, run_id: str) -> dict[str, Any] | None:
        """Where the time of a run went; None where that is not known."""
        ...

    def run_summary(self, run_id: str) -> list[dict[str, Any]]:
        """By task and label: images, mean probability, how many ask for a look."""
        ...

    def failure_codes(self, run_id: str) -> list[dict[str, Any]]:
        """How many images of a run failed, by stage and code."""
        ...

    def models(self) -> list[ModelInfo]:
        """The models that results are of, with the tasks and labels that they answer."""
        ...

    def results(self, what: str, wanted: ResultFilter, *, newest_first: bool = False) -> Iterator[dict[str, Any]]:
        """Rows of `what` (predictions, probabilities or failures), in bounded memory."""
        ...

    def first_results(self, what: str, wanted: ResultFilter, limit: int) -> list[dict[str, Any]]:
        """The newest rows, at most `limit`."""
        ...

    def check(self) -> dict[str, Any]:
        """Is it whole ('integrity' is 'ok'), at which schema, which rights are missing, how much is in it."""
        ...

    def cost(self) -> dict[str, float]:
        """What the work so far has cost by the store's own measure, such as request units."""
        ...

    def delete(self, *, name: str | None = None, before: str | None = None) -> Iterator[int]:
        """Deletes all that is held of the images of a name, or last looked at before a time; yields how many."""
        ...

    # Moving to another store.
    def saved(self) -> Iterator[list[Saved]]:
        """All that is held, a page of images at a time."""
        ...

    def saved_of(self, image_ids: Sequence[str]) -> list[Saved]:
        """All that is held of some images."""
        ...

    def restore(self, held: Sequence[Saved], model: ModelInfo) -> None:
        """Writes outcomes of one model as another store held them."""
        ...

    def restore_runs(self, runs: Sequence[dict[str, Any]]) -> None:
        """Writes runs as another store held them; those that are there stay as they are."""
        ...

    def close(self) -> None:
        """Lets go of it."""
        ...


def open_store(url: str, *, create: bool = False, options: StoreOptions | None = None) -> Store:
    """The store behind a URL; docs/stores.md has each form.

    sqlite:///FILE (relative), sqlite:////ABSOLUTE/FILE, or a plain file name; sqlite:///:memory: is gone when it
    is closed. mssql://SERVER/DATABASE. cosmos://ACCOUNT.documents.azure.com/DATABASE.

    With `create`, it is made or brought up to date where needed; otherwise StoreNotFound is raised when
    there is none. Raises UsageError for what is no store, ServiceUnreachable when a service does not answer.
    """
    options = options or StoreOptions()
    scheme, separator, rest = url.partition("://")
    if not separator and url.lower().startswith(("sqlite:", "mssql:", "cosmos:")):
        raise UsageError(reason=f"A store's URL has two slashes after its kind: {url.partition(':')[0].lower()}://...")
    match scheme.lower() if separator else "":
        case "":
            return _sqlite(url, create, options)
        case "sqlite":
            if not rest.startswith("/"):
                raise UsageError(reason="A SQLite store is written with three slashes: sqlite:///FILE.")
            return _sqlite(unquote(rest[1:]), create, options)
        case "mssql":
            from vehclass.stores.azure_sql import open_azure_sql

            return open_azure_sql(url, create=create, options=options)
        case "cosmos":
            from vehclass.stores.cosmos import open_cosmos

            return open_cosmos(url, create=create, options=options)
        case _:
            raise UsageError(
                reason=f"{scheme}:// is no store; name one as sqlite:///FILE, mssql://SERVER/DATABASE or cosmos://ACCOUNT/DATABASE."
            )


def _sqlite(name: str, create: bool, options: StoreOptions) -> Store:
    from vehclass.stores.sql import SqlStore
    from vehclass.stores.sqlite import SqliteDatabase

    if not name or "\0" in name:
        raise UsageError(reason="The store's name is empty; name a file as sqlite:///FILE.")
    path = None if name == ":memory:" else Path(name)
    wait = 30.0 if options.wait is None else options.wait
    return SqlStore(SqliteDatabase(path, create=create, busy_seconds=wait))
