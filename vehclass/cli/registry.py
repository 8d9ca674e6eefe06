"""`vehclass model push`, `pull`, `list`, `promote`, `rollback`, `history`: models as things that are handed around."""

import getpass
import os
import socket
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vehclass.cli import options, show
from vehclass.errors import Interrupted, ModelRefused, UsageError

if TYPE_CHECKING:
    from vehclass.registry.layout import Registry as AnyRegistry
    from vehclass.registry.promotion import Change

Name = Annotated[str, typer.Argument(help="A model's name.", show_default=False)]
Why = Annotated[str, typer.Option("--why", help="Why; kept in the history.", show_default=False)]


def push(
    folder: Annotated[Path, typer.Argument(help="A model folder.", show_default=False)],
    registry: options.Registry = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Put a model into the registry, after checking that none of its files was changed.

    Its version is a digest of its content, so a version is put there once and never changes. A push that was stopped
    goes on when it is repeated. It changes nothing of what is in production.

    Example: vehclass model push models/mine --registry az://MYACCOUNT/models
    """
    from vehclass.model.folder import open_model
    from vehclass.registry.pushing import push as put

    settings = options.given(models=registry)
    there = options.registry(settings)
    model = open_model(folder, options.model_key(settings))
    with show.status(quiet=as_json, lines=True) as tell:
        try:
            done = put(model, there, tell)
        except Interrupted as error:
            saved = "What was sent stays, and is no version yet; the same push goes on from there."
            raise Interrupted(Signals(error.exit_code - 128), saved) from error
    if as_json:
        show.print_json({"model": done.key, "registry": there.url, "uploaded": done.files, "bytes": done.bytes})
    elif done.files:
        show.say(f"{done.key} is in {there.url} now: {len(done.files)} files, {show.size(done.bytes)}.")
        show.say(f"To have it used by name: vehclass model promote {done.key}")
    else:
        show.say(f"{done.key} is in {there.url} already; nothing was sent.")


def pull(
    model: Annotated[str, typer.Argument(help="NAME (the one in production) or NAME@VERSION.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="A new folder to put it into.", show_default=False)] = None,
    registry: options.Registry = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Take a model from the registry, check every file, and say where it is.

    Example: vehclass model pull mine --out here/mine
    """
    from vehclass.registry.cache import download, open_from
    from vehclass.registry.files import plainly
    from vehclass.registry.layout import read_reference
    from vehclass.registry.resolving import find

    settings = options.given(models=registry)
    there, reference = options.registry(settings), read_reference(model)
    if out and (out.exists() or out.is_symlink()):
        raise UsageError(reason=f"{out} is there already, and is not replaced. Name another folder with --out.")
    with show.status(quiet=as_json, lines=True) as tell:
        if out:
            version = find(there, reference)
            with plainly(f"The model cannot be put into {out}"):
                out.parent.mkdir(parents=True, exist_ok=True)
                folder = download(there, reference.name, version, out, tell, options.model_key(settings))
        else:
            folder = open_from(there, reference, options.model_cache(settings), tell, options.model_key(settings))
    if as_json:
        show.print_json({"model": folder.info.key, "registry": there.url, "path": str(folder.path)})
    else:
        show.say(f"{folder.info.key} is in {folder.path}; every file is as it was made.")


def list_models(
    registry: options.Registry = None, as_json: options.Json = False, verbose: options.Verbose = False
) -> None:
    """List the models of the registry, with the accuracy of each task on its test photos.

    Example: vehclass model list --registry az://MYACCOUNT/models
    """
    from vehclass.registry.promotion import read_production

    there = options.registry(options.given(models=registry))
    rows = []
    for name in there.names():
        production = read_production(there, name).version
        versions = there.versions(name)
        rows += sorted((_row(there, name, version, production) for version in versions), key=_newest_first)
    if as_json:
        show.print_json({"registry": there.url, "models": rows})
        return
    if not rows:
        show.say(f"{there.url} has no models yet. Put one there: vehclass model push FOLDER")
        return
    show.table(
        None,
        ("model", "version", "made", "accuracy", "size", ""),
        [
            (
                row["name"],
                row["version"],
                row["made"][:10],
                row["problem"] or _accuracy(row),
                show.size(row["bytes"]),
                "production" if row["production"] else "",
            )
            for row in rows
        ],
        right=("size",),
        whole=("version", "made"),
    )


def _row(registry: "AnyRegistry", name: str, version: str, production: str | None) -> dict[str, Any]:
    """A version as the list shows it; one whose facts cannot be read has a row that says so."""
    from vehclass.registry.cache import files_of
    from vehclass.registry.layout import accuracies, facts_of

    row = {"name": name, "version": version, "production": version == production, "problem": ""}
    try:
        facts, _ = facts_of(registry, name, version)
    except ModelRefused as error:
        facts, row["problem"] = {}, str(error.facts["reason"])
    size = sum(stored.size for stored in files_of(registry, name, version).values())
    return {**row, "made": str(facts.get("created_at", "")), "accuracy": accuracies(facts), "bytes": size}


def _newest_first(row: dict[str, Any]) -> tuple[bool, list[int]]:
    return not row["production"], [-ord(letter) for letter in row["made"]]


def _accuracy(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{task} {'?' if value is None else show.percent(value)}" for task, value in row["accuracy"].items()
    )


def promote(
    model: Annotated[str, typer.Argument(help="NAME@VERSION.", show_default=False)],
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            "--min-accuracy",
            min=0.0,
            max=1.0,
            help="Refuse it if a task is right on less than this share of its test photos, such as 0.9.",
            show_default=False,
        ),
    ] = None,
    why: Why = "",
    force: Annotated[
        bool, typer.Option("--force", help="Promote it whatever its accuracy; recorded in the history.")
    ] = False,
    registry: options.Registry = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Point production at a version: from its next run on, whoever names the model without a version uses it.

    Refused when a task is below --min-accuracy, or is right less often than the version in production on the same
    test photos. When two people promote at once, one of them is told.

    Example: vehclass model promote mine@d3b81b76d845 --min-accuracy 0.9 --why "learnt the winter photos"
    """
    from vehclass.model.folder import FACTS_FILE
    from vehclass.registry.cache import open_from
    from vehclass.registry.layout import Reference, read_reference
    from vehclass.registry.promotion import Wish
    from vehclass.registry.promotion import promote as point
    from vehclass.registry.pushing import push as put
    from vehclass.registry.resolving import find

    settings = options.given(models=registry)
    there, reference = options.registry(settings), read_reference(model)
    if reference.version is None:
        known = ", ".join(there.versions(reference.name)) or "none"
        raise UsageError(reason=f"Say which version of {model} to promote, as {model}@VERSION; there are: {known}.")
    version = find(there, reference)
    with show.status(quiet=as_json, lines=True) as tell:
        # Whole and unchanged, or tonight's run would find out.
        folder = open_from(
            there, Reference(reference.name, version), options.model_cache(settings), tell, options.model_key(settings)
        )
        if FACTS_FILE not in there.contents(reference.name, version):
            # A folder as `train` wrote it: a copy is promoted, which no later training can touch.
            put(folder, there, tell)
        change = point(there, reference.name, version, Wish(_who(), why, min_accuracy, force))
    _tell(change, there, as_json=as_json)


def rollback(
    name: Name,
    why: Why = "",
    registry: options.Registry = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Point production at the version that was there before; once more, at the one before that.

    Example: vehclass model rollback mine --why "vans are taken for cars"
    """
    from vehclass.registry.cache import open_from
    from vehclass.registry.layout import Reference, read_reference
    from vehclass.registry.promotion import Wish, before_the_present, roll_back

    settings = options.given(models=registry)
    there, asked = options.registry(settings), read_reference(name)
    if asked.version:
        raise UsageError(
            reason=f"Rollback goes to the version before, so it takes a name alone. For another: vehclass model promote {name}"
        )
    present, version = before_the_present(there, name)
    with show.status(quiet=as_json, lines=True) as tell:
        open_from(there, Reference(name, version), options.model_cache(settings), tell, options.model_key(settings))
        change = roll_back(there, name, present, Wish(_who(), why))
    _tell(change, there, as_json=as_json)


def history(
    name: Name, registry: options.Registry = None, as_json: options.Json = False, verbose: options.Verbose = False
) -> None:
    """Show who pointed production of a model at which version, when and why, the latest first.

    Example: vehclass model history mine
    """
    from vehclass.registry.layout import Reference, not_in, read_reference
    from vehclass.registry.promotion import read_production

    there = options.registry(options.given(models=registry))
    if read_reference(name).version:
        raise UsageError(reason="A history is of all versions of a model, so it takes a name alone.")
    production = read_production(there, name)
    if production.version is None and not there.versions(name):
        raise not_in(there, Reference(name))
    if as_json:
        show.print_json({"model": name, "production": production.version, "history": production.history})
        return
    if not production.history:
        show.say(f"No version of {name} was ever promoted in {there.url}.")
        return
    columns = ("when", "version", "what", "instead of", "who", "why")
    rows = [
        (
            str(one.get("promoted_at"))[:19],
            one["version"],
            _what(one),
            one.get("previous"),
            one.get("promoted_by"),
            one.get("why"),
        )
        for one in production.history
    ]
    show.table(f"Production of {name}", columns, rows, whole=("when", "version", "instead of"))


def _what(entry: dict[str, Any]) -> str:
    if entry.get("action") == "rollback":
        return "rolled back"
    return "promoted by force" if entry.get("forced") else "promoted"


def _tell(change: "Change", registry: "AnyRegistry", *, as_json: bool) -> None:
    """Says what is in production now."""
    entry = change.entry
    if as_json:
        about = {"model": change.name, "registry": registry.url, "changed": change.changed}
        show.print_json({**about, **entry, "notes": change.notes})
        return
    key = f"{change.name}@{entry['version']}"
    if not change.changed:
        show.say(
            f"{key} is in production already, since {str(entry.get('promoted_at'))[:19]} by {entry.get('promoted_by')}; nothing was written."
        )
        return
    instead = f", instead of {entry['previous']}" if entry["previous"] else ""
    show.say(f"{key} is in production now{instead}. Runs that name {change.name} take it when they begin.")
    for note in change.notes:
        show.note(note)


def _who() -> str:
    """Who is at work, as user@host; by number where the system has no name for the user."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
