"""Options that several commands share, and the adapters that they choose."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vehclass.cli import logs
from vehclass.errors import UsageError
from vehclass.settings import Settings

if TYPE_CHECKING:
    from vehclass.azure_storage.options import BlobOptions
    from vehclass.model.folder import ModelFolder
    from vehclass.registry.layout import Registry as AnyRegistry
    from vehclass.stores import Store as AnyStore
    from vehclass.stores.options import StoreOptions

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show where an error comes from.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A model folder such as models/sample, NAME or NAME@VERSION, or their URL.",
        show_default=False,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="A model folder such as models/sample, NAME or NAME@VERSION, or their URL; repeated, several look at each photo.",
        show_default=False,
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Where results are: sqlite:///FILE, mssql://HOST/DB or cosmos://ACCOUNT/DB. (default: sqlite:///vehclass.db)",
        show_default=False,
    ),
]
Registry = Annotated[
    str | None,
    typer.Option(
        "--registry",
        help="Where models are handed around: a folder, az://ACCOUNT/CONTAINER/PREFIX or its https URL. (default: models)",
        show_default=False,
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime", help="What runs the network: auto, openvino or keras. (default: auto)", show_default=False
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="The arithmetic on a CPU: f32, bf16, int8, or auto for the quickest that was measured to answer alike. (default: auto)",
        show_default=False,
    ),
]
Notify = Annotated[
    str | None,
    typer.Option(
        help="When to post and mail how it ended: always, on-failure or never. (default: on-failure)",
        show_default=False,
    ),
]
LogFormat = Annotated[
    logs.Format,
    typer.Option(
        envvar="VEHCLASS_LOG_FORMAT",
        help="Lines on standard error: human, json, or auto for people on a terminal and JSON elsewhere.",
    ),
]
Container = Annotated[
    str,
    typer.Option(
        "--container",
        "-c",
        help="A folder, a container's name, az://ACCOUNT/CONTAINER/PREFIX or its https URL.",
        show_default=False,
    ),
]


CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU, of so many (cgroup v2)


def cores(quota: Path = CPU_QUOTA) -> int:
    """The cores that this process may use: those it may run on, and no more than its container's share of the time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        time, of = quota.read_text().split()
        return max(1, min(allowed, math.ceil(int(time) / int(of))))
    except (OSError, ValueError):  # no such file, or 'max', which is no limit
        return allowed


def blob_options(settings: Settings) -> "BlobOptions":
    """The settings of a storage account."""
    from vehclass.azure_storage.options import BlobOptions

    return BlobOptions(
        connection_string=settings.storage_connection_string,
        account=settings.storage_account,
        account_key=settings.storage_key,
        sas_token=settings.storage_sas,
        concurrency=settings.read_concurrency,
        allow_http=settings.allow_http,
        lease=settings.blob_lease,
    )


def model_folder(settings: Settings) -> "ModelFolder":
    """The checked model of the settings: a folder, or what its name in a registry means at this moment."""
    from vehclass.cli import show
    from vehclass.model.folder import open_model
    from vehclass.registry.cache import open_from
    from vehclass.registry.resolving import place_of

    if not settings.model:
        raise UsageError(
            reason="Name a model folder with --model or VEHCLASS_MODEL, such as models/sample, "
            "or a model of a registry as NAME or NAME@VERSION."
        )
    place = place_of(settings.model, settings.models)
    if isinstance(place, Path):
        return open_model(place, model_key(settings))
    where, reference = place
    with show.status(quiet=False, lines=True) as tell:
        return open_from(registry(settings, where), reference, model_cache(settings), tell, model_key(settings))


def model_key(settings: Settings) -> Path | None:
    """The public key that models must be signed with, if any."""
    return Path(settings.model_key).expanduser() if settings.model_key else None


def registry(settings: Settings, where: str | None = None) -> "AnyRegistry":
    """The registry of the settings, or another one."""
    from vehclass.registry import open_registry

    return open_registry(where or settings.models, blob_options(settings))


def model_cache(settings: Settings) -> Path:
    """The folder that keeps downloaded models."""
    try:
        return Path(settings.cache).expanduser()
    except RuntimeError as error:  # a user without a home
        raise UsageError(reason=f"{settings.cache} cannot be found: {error} Set VEHCLASS_CACHE.") from error


def store_options(settings: Settings) -> "StoreOptions":
    """The settings of a store that is a service."""
    from vehclass.cli import show
    from vehclass.stores.options import StoreOptions

    return StoreOptions(
        wait=settings.store_wait,
        timeout=settings.store_timeout,
        allow_http=settings.allow_http,
        sql_connection_string=settings.sql_connection_string,
        sql_user=settings.sql_user,
        sql_password=settings.sql_password,
        cosmos_connection_string=settings.cosmos_connection_string,
        cosmos_key=settings.cosmos_key,
        cosmos_throughput=settings.cosmos_throughput,
        cosmos_result_days=settings.cosmos_result_days,
        cosmos_run_days=settings.cosmos_run_days,
        max_ru=settings.max_ru,
        say=show.note,
    )


@contextmanager
def existing_store(settings: Settings) -> "Iterator[AnyStore]":
    """The store of the settings, which has to be there already; closed when the block ends."""
    from vehclass.stores import open_store

    opened = open_store(settings.store, options=store_options(settings))
    try:
        yield opened
    finally:
        opened.close()


def moment(text: str | None, option: str) -> datetime | None:
    """A time as people write it: 2026-11-01, 2026-11-01T22:00+01:00, or so long ago: 90m, 24h, 7d. UTC unless said."""
    if text is None:
        return None
    units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    try:
        if text[-1:] in units and text[:-1].isdecimal():
            return datetime.now(UTC) - timedelta(**{units[text[-1]]: int(text[:-1])})
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            reason=f"{option} is {text!r}; write a date (2026-11-01), a time or an age (24h, 7d)."
        ) from error


def seconds(text: str | None, option: str) -> float | None:
    """A length of time as people write it: 90s, 30m, 2h."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        length = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        length = 0.0
    if not 0 < length < 1e8:
        raise UsageError(reason=f"{option} is {text!r}; write a number with s, m or h, such as 30m.")
    return length


def given(**flags: Any) -> Settings:
    """The settings with these flags on top; a flag that is None was not given."""
    from vehclass.settings import load

    return load(flags)
