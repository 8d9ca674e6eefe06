"""What lies where in a registry, what may be a name there, and what a place has to offer to be one.

NAME/VERSION/<files> is a version of a model, complete once its model.json is there, which is written last.
NAME/production.json says which version is in production. Versions never change; only that pointer does.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from vehclass.errors import ModelNotInRegistry, ModelRefused, UsageError
from vehclass.model.folder import FACTS_FILE, MAX_FACTS_BYTES

POINTER_FILE: Final = "production.json"
MAX_POINTER_BYTES: Final = 4 * 2**20
MAX_DOCUMENT_BYTES: Final = 64 * 2**20
MAX_MODEL_BYTES: Final = 8 * 2**30
MAX_FILES: Final = 64
CHUNK_BYTES: Final = 2**20

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION: Final = re.compile(r"[0-9a-f]{12}")
_VERSION_BEGINNING: Final = re.compile(r"[0-9a-f]{4,12}")
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Moved = Callable[[int], None]  # is told how many bytes more have been moved


@dataclass(frozen=True, slots=True)
class Stored:
    """A file in a registry: bytes, MD5 in hexadecimal where it is known, and what its content is told by."""

    size: int
    md5: str | None = None
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Reference:
    """A model as people name it; without a version, the one in production is meant. It may be a version's beginning."""

    name: str
    version: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the version is whole, so that nobody has to be asked which is meant."""
        return self.version is not None and is_version(self.version)

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


class Registry(Protocol):
    """A place that has models; its methods raise VehclassErrors about the place as a whole."""

    @property
    def url(self) -> str:
        """How messages name it, without secrets."""

    def names(self) -> list[str]:
        """The names of all models, sorted."""

    def versions(self, name: str, beginning: str = "") -> list[str]:
        """The complete versions of a model, sorted; only those that begin so."""

    def path(self, name: str, version: str) -> Path | None:
        """Where a version lies on this machine; None where it must be downloaded. Raises ModelNotInRegistry."""

    def contents(self, name: str, version: str) -> dict[str, Stored]:
        """The files under NAME/VERSION/, also of a version that is not complete; empty when there is none."""

    def read_facts(self, name: str, version: str) -> bytes | None:
        """A version's model.json, MAX_FACTS_BYTES + 1 at most; None when there is none."""

    def download(self, name: str, version: str, file: str, stored: Stored, into: Path, moved: Moved) -> None:
        """Writes one of a version's files, of the size that was listed, to a new file."""

    def upload(self, name: str, version: str, file: Path, moved: Moved) -> None:
        """Puts a file into a version under its own name, whole or not at all."""

    def finish(self, name: str, version: str, facts: bytes) -> None:
        """Puts model.json into a version, which makes it complete; one that is there stays as it is."""

    def pointer(self, name: str) -> tuple[bytes, str] | None:
        """A model's production.json with its etag; None when nothing was ever promoted."""

    def point(self, name: str, content: bytes, etag: str | None) -> bool:
        """Replaces production.json if its etag is still this (None: if there is none); says whether it did."""


def is_name(text: str) -> bool:
    """Whether a model may be called so in a registry."""
    return _NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether this is a whole version."""
    return _VERSION.fullmatch(text) is not None


def is_file_name(text: str) -> bool:
    """Whether a file of a model may be called so: one plain part of a path, never a way out of the folder."""
    return _FILE.fullmatch(text) is not None and text not in (FACTS_FILE, POINTER_FILE)


def read_reference(text: str) -> Reference:
    """NAME, NAME@VERSION, or NAME@ with a version's first four digits or more. Raises UsageError."""
    name, separator, version = text.partition("@")
    if not is_name(name) or (separator and not _VERSION_BEGINNING.fullmatch(version.lower())):
        raise UsageError(
            reason=f"{text!r} names no model: write NAME or NAME@VERSION, a name of letters, digits, '.', '_' and '-', "
            "and at least four of the version's twelve hexadecimal digits."
        )
    return Reference(name, version.lower() if separator else None)


def facts_of(registry: Registry, name: str, version: str) -> tuple[dict[str, Any], bytes]:
    """A version's model.json, parsed, and its bytes; raises ModelNotInRegistry or ModelRefused.

    Only what the registry itself relies on is checked: that it is this model's, and that its files have plain names.
    """
    data = registry.read_facts(name, version)
    if data is None:
        raise not_in(registry, Reference(name, version))
    where = f"{registry.url}/{name}/{version}"
    try:
        facts = json.loads(data) if len(data) <= MAX_FACTS_BYTES else None
    except (ValueError, RecursionError) as error:
        raise ModelRefused(path=where, reason=f"{FACTS_FILE} cannot be read ({error})") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise ModelRefused(path=where, reason=f"{FACTS_FILE} is not what `vehclass train` writes")
    if (facts.get("name"), facts.get("version")) != (name, version):
        raise ModelRefused(path=where, reason=f"it is another model ({facts.get('name')}@{facts.get('version')})")
    for file in facts["files"]:
        if not is_file_name(file):
            raise ModelRefused(path=where, reason=f"{FACTS_FILE} names a file that is no plain name ({file[:200]!r})")
    if len(facts["files"]) > MAX_FILES:
        raise ModelRefused(path=where, reason=f"{FACTS_FILE} names {len(facts['files'])} files, more than {MAX_FILES}")
    return facts, data


def accuracies(facts: Mapping[str, Any]) -> dict[str, float | None]:
    """The accuracy on the test photos by task; None where a task had none."""
    metrics = facts.get("metrics")
    if not isinstance(metrics, dict):
        return {}
    values = {str(task): of.get("accuracy") for task, of in metrics.items() if isinstance(of, dict)}
    return {task: float(value) if isinstance(value, int | float) else None for task, value in values.items()}


def not_in(registry: Registry, wanted: Reference) -> ModelNotInRegistry:
    """The error for a model that is not there, with what is."""
    versions = registry.versions(wanted.name) if wanted.version else []
    if versions:
        reason = f"its versions there are {_listed(versions)}"
    else:
        names = registry.names()
        reason = (
            f"the models there are {_listed(names)}"
            if names
            else "it is empty; put one there with `vehclass model push`"
        )
    return ModelNotInRegistry(registry=registry.url, wanted=wanted, reason=reason)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
