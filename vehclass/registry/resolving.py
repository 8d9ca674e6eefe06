"""What people write for a model (NAME, NAME@VERSION, a URL) -> the one version that is meant."""

from pathlib import Path
from urllib.parse import unquote

from vehclass.errors import ModelNotFound, UsageError
from vehclass.model.folder import FACTS_FILE
from vehclass.registry.folder import FolderRegistry
from vehclass.registry.layout import Reference, Registry, is_name, not_in, read_reference
from vehclass.registry.promotion import read_production


def place_of(text: str, registry: str) -> tuple[str, Reference] | Path:
    """Where to look for a model: a model folder's path, or a registry and what to ask it for.

    An existing folder goes first; then what ends in /NAME or /NAME@VERSION of some registry; then a name in `registry`.
    Raises UsageError or ModelNotFound.
    """
    if "://" in text:
        return _of_url(text)
    path = Path(text)
    try:
        exists = path.exists()
    except OSError as error:  # a name that is too long
        raise ModelNotFound(path=f"{text[:60]}...", reason=error.strerror or "it cannot be opened") from error
    if exists:
        # The folder of a name in a registry stands for that name.
        whole = path.resolve()
        is_of_registry = is_name(whole.name) and not (whole / FACTS_FILE).is_file() and whole.is_dir()
        if is_of_registry and FolderRegistry(whole.parent).versions(whole.name):
            return str(whole.parent), Reference(whole.name)
        return path
    folder, separator, name = text.rstrip("/").rpartition("/")
    if not separator:
        reference = read_reference(text)
        if "://" not in registry and not Path(registry).is_dir():
            raise ModelNotFound(
                path=text, reason=f"there is no such folder, and no registry {registry} that could have such a model"
            )
        return registry, reference
    if "@" not in name or not Path(folder or "/").is_dir():
        return path  # which is not there: opening it says so
    return folder or "/", read_reference(name)


def _of_url(text: str) -> tuple[str, Reference]:
    """A registry's URL and a model in it; a SAS stays with the registry."""
    address, question, query = text.partition("?")
    registry, _, name = address.rstrip("/").rpartition("/")
    if registry.endswith(("/", ":")):
        raise UsageError(reason=f"{address} names no model in a registry; write az://ACCOUNT/CONTAINER/NAME.")
    return f"{registry}{question}{query}", read_reference(unquote(name))


def find(registry: Registry, reference: Reference) -> str:
    """The version that is meant: the one named, the only one that begins so, the one in production, or the only one.

    Raises ModelNotInRegistry, UsageError where it is not clear, or what the registry raises.
    """
    if reference.version is not None and reference.is_exact:
        return reference.version
    name = reference.name
    if reference.version is None:
        production = read_production(registry, name)
        if production.version is not None:
            return production.version
    versions = registry.versions(name, reference.version or "")
    if len(versions) == 1:
        return versions[0]
    if not versions:
        raise not_in(registry, reference)
    listed = ", ".join(versions)
    if reference.version is not None:
        raise UsageError(reason=f"{reference} may be any of {listed}; write more of it.")
    raise UsageError(
        reason=f"{name} has {len(versions)} versions in {registry.url} and none is in production: {listed}. "
        f"Name one, such as {name}@{versions[0]}, or promote it: `vehclass model promote {name}@{versions[0]}`."
    )
