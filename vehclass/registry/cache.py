"""A version in a registry -> a verified model folder on this machine, downloaded once."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vehclass.errors import ModelNotFound, ModelNotInRegistry, ModelRefused, ServiceUnreachable
from vehclass.model.folder import DOCUMENTS, FACTS_FILE, ModelFolder, open_model
from vehclass.model.signature import SIGNATURE_FILE
from vehclass.registry.files import beside, locked, plainly, write_whole
from vehclass.registry.layout import (
    MAX_DOCUMENT_BYTES,
    MAX_MODEL_BYTES,
    Reference,
    Registry,
    Stored,
    facts_of,
    is_version,
)
from vehclass.registry.resolving import find

Say = Callable[[str], None]


def open_from(registry: Registry, reference: Reference, cache: Path, say: Say, key: Path | None = None) -> ModelFolder:
    """The model that a reference means now, verified; in its place, or from the cache, or downloaded into it.

    With a public `key` its owner must have signed it. Raises ModelNotInRegistry, ModelRefused, UsageError, or what the registry raises.
    """
    try:
        version = find(registry, reference)
    except ServiceUnreachable as error:
        for name in _cached_versions(cache, reference.name):
            error.add_note(f"{reference.name}@{name} is in the cache: named so, it is used without the registry.")
        raise
    try:
        return fetch(registry, reference.name, version, cache, say, key)
    except ModelNotInRegistry as error:
        if reference.version is None:
            error.add_note(
                f"Production points at it. `vehclass model rollback {reference.name}` goes back to the one before."
            )
        raise


def fetch(registry: Registry, name: str, version: str, cache: Path, say: Say, key: Path | None = None) -> ModelFolder:
    """A version as a verified model folder. A cached one is verified again, and downloaded anew if it is damaged."""
    place = registry.path(name, version)
    if place is not None:
        return _verified(place, name, version, key)
    target = cache / name / version
    found = _cached(target, name, version, key)
    if found:
        return found
    with plainly(f"The model cannot be kept in {cache}", " Name another place with VEHCLASS_CACHE."):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Whoever waits here finds in the cache what the other one has downloaded.
        with locked(target.with_name(f".{version}.lock")):
            found = _cached(target, name, version, key)
            if found:
                return found
            if key and SIGNATURE_FILE not in files_of(registry, name, version):
                where = f"{registry.url}/{name}/{version}"
                raise ModelRefused(
                    path=where, reason=f"it is not signed, and VEHCLASS_MODEL_KEY asks for a signature by {key}"
                )
            # What a killed download has left; nobody else is at work here.
            for left in [*target.parent.glob(f".{version}.*.part"), target]:
                shutil.rmtree(left, ignore_errors=True)
            return download(registry, name, version, target, say, key)


def download(
    registry: Registry, name: str, version: str, target: Path, say: Say, key: Path | None = None
) -> ModelFolder:
    """Downloads a version into a new folder, which is there whole and verified, or not at all."""
    facts, data = facts_of(registry, name, version)
    there = files_of(registry, name, version)
    where = f"{registry.url}/{name}/{version}"
    wanted: dict[str, Stored] = {}
    for file in facts["files"]:
        if file not in there:
            raise ModelRefused(path=where, reason=f"{file} is missing")
        wanted[file] = there[file]
    total = sum(stored.size for stored in wanted.values())
    if total > MAX_MODEL_BYTES:
        raise ModelRefused(path=where, reason=f"it has {total:,} bytes, and at most {MAX_MODEL_BYTES:,} are downloaded")
    wanted |= {
        file: there[file]
        for file in (*DOCUMENTS, SIGNATURE_FILE)
        if file in there and file not in wanted and there[file].size <= MAX_DOCUMENT_BYTES
    }
    total = sum(stored.size for stored in wanted.values())
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        say(f"Downloading {name}@{version}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")

    draft = beside(target)
    try:
        draft.mkdir()
        for file, stored in wanted.items():
            registry.download(name, version, file, stored, draft / file, moved)
        write_whole(draft / FACTS_FILE, (data,))
        try:
            _verified(draft, name, version, key)
        except ModelRefused as error:
            raise ModelRefused(path=where, reason=error.facts["reason"]) from error
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return _verified(target, name, version, key)


def files_of(registry: Registry, name: str, version: str) -> dict[str, Stored]:
    """A version's files, also where it stands in a registry as `train` wrote it, at NAME/."""
    listed = registry.contents(name, version)
    place = None if listed else registry.path(name, version)
    files = place.iterdir() if place else ()
    return listed or {file.name: Stored(file.stat().st_size) for file in files if file.is_file()}


def _verified(place: Path, name: str, version: str, key: Path | None) -> ModelFolder:
    folder = open_model(place, key)
    if (folder.info.name, folder.info.version) != (name, version):
        raise ModelRefused(path=place, reason=f"it is {folder.info.key}, where {name}@{version} should be")
    return folder


def _cached(target: Path, name: str, version: str, key: Path | None) -> ModelFolder | None:
    with suppress(ModelNotFound, ModelRefused):
        return _verified(target, name, version, key)
    return None


def _cached_versions(cache: Path, name: str) -> list[str]:
    try:
        return sorted(entry.name for entry in (cache / name).iterdir() if is_version(entry.name))
    except OSError:
        return []
