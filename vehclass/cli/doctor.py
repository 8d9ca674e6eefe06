"""`vehclass doctor`: is everything here that a run needs?"""

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from vehclass import __version__
from vehclass.cli import options, show
from vehclass.errors import ExitCode, StoreAccessDenied, StoreError, UsageError, VehclassError
from vehclass.settings import Settings

PACKAGES = (
    "keras",
    "tensorflow",
    "openvino",
    "pillow",
    "numpy",
    "azure-storage-blob",
    "azure-identity",
    "azure-cosmos",
    "pyodbc",
    "pyarrow",
)


def doctor(
    container: Annotated[
        str | None, typer.Option("--container", "-c", help="Also try to list this source.", show_default=False)
    ] = None,
    model: options.Model = None,
    store: options.Store = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show versions, devices and settings, and try the model, the store and the source.

    Secrets are never shown. Exit code 1 when something that was named does not work.

    Example: vehclass doctor --container uploads --model models/sample
    """
    settings = options.given(model=model, store=store)
    report = {
        "vehclass": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": options.cores(),
        "packages": {name: _installed(name) for name in PACKAGES},
        "sqlite": _sqlite(),
        "odbc_driver": _odbc(),
        "large_jpegs": _large_jpegs(),
        "devices": _devices(),
        "settings": settings.shown(),
        "checks": _checks(settings, container),
    }
    if as_json:
        show.print_json(report)
    else:
        _print(report)
    if any(check["ok"] is False for check in report["checks"]):  # type: ignore[attr-defined]  # a list, in a dict of many kinds
        raise typer.Exit(int(ExitCode.FAILED))


def _print(report: dict[str, Any]) -> None:
    facts = [
        (name, report[name])
        for name in ("vehclass", "python", "system", "cores", "sqlite", "odbc_driver", "large_jpegs", "devices")
    ]
    show.table(
        None,
        ("", "here"),
        [(name.replace("_", " "), value) for name, value in facts] + list(report["packages"].items()),
    )
    show.table(
        "Settings in force",
        ("setting", "value", "from", "environment"),
        [(row["setting"], _shown(row["value"]), row["origin"], row["environment"]) for row in report["settings"]],
    )
    marks = {True: "ok", False: "FAILED", None: "-"}
    show.table(
        "Checks",
        ("", "", "what"),
        [(check["name"], marks[check["ok"]], check["message"]) for check in report["checks"]],
    )


def _shown(value: object) -> object:
    return ", ".join(value) if isinstance(value, tuple) else "" if value is None else value


def _checks(settings: Settings, container: str | None) -> list[dict[str, object]]:
    def the_model() -> str:
        import numpy as np

        from vehclass.model.classifier import Classifier

        folder = options.model_folder(settings)
        classifier = Classifier.open(folder, kind=settings.runtime, precision=settings.precision)
        width, height = folder.info.input_size
        classifier.classify(np.zeros((1, height, width, 3), np.uint8))
        return f"{folder.info.key} answers on {classifier.runtime.name} ({classifier.runtime.device})"

    def the_store() -> str:
        with options.existing_store(settings) as results:
            report = results.check()
        if report["integrity"] != "ok":
            raise StoreError(url=report["url"], reason=f"the file is damaged ({report['integrity']})")
        if report["missing_rights"]:
            rights = ", ".join(report["missing_rights"])
            raise StoreAccessDenied(url=report["url"], reason=f"it may not {rights}")
        return f"{report['url']}: schema {report['schema_version']}, {report['outcomes']:,} results, integrity ok"

    def the_source() -> str:
        from vehclass.sources import open_source

        source = open_source(container or "", options.blob_options(settings))
        source.check()
        return f"{source.url} can be listed"

    def attempt(name: str, wanted: bool, look: Callable[[], str], otherwise: str) -> dict[str, object]:
        if not wanted:
            return {"name": name, "ok": None, "message": otherwise}
        try:
            return {"name": name, "ok": True, "message": look()}
        except VehclassError as error:
            return {"name": name, "ok": False, "message": str(error)}

    return [
        attempt("model", settings.model is not None, the_model, "none named; try --model models/sample"),
        attempt("store", "store" in settings.origins, the_store, f"none named; a run would use {settings.store}"),
        attempt("source", container is not None, the_source, "none named; try --container FOLDER"),
    ]


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _sqlite() -> str:
    import sqlite3

    return sqlite3.sqlite_version


def _large_jpegs() -> str:
    from vehclass.jpeg_eighth import decode_eighth

    if decode_eighth is not None:
        return "decoded quickly"
    return "decoded in twice the time: install a C compiler and Python's headers (Debian: gcc python3-dev), then vehclass again"


def _odbc() -> str:
    """The driver that Azure SQL would be reached with, or what to install."""
    from vehclass.stores.azure_sql_login import find_driver

    try:
        return find_driver()
    except UsageError as error:
        return f"none; only needed for --store mssql://. {error}"


def _devices() -> str:
    from vehclass.model.frameworks import load_openvino

    openvino = load_openvino()

    core = openvino.Core()
    return ", ".join(f"{name}: {core.get_property(name, 'FULL_DEVICE_NAME')}" for name in core.available_devices)
