"""A folder as a registry of models, on this machine or on a disk that several share."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from vehclass.errors import RegistryNotFound
from vehclass.model.folder import FACTS_FILE, MAX_FACTS_BYTES
from vehclass.registry.files import locked, plainly, write_whole
from vehclass.registry.layout import (
    CHUNK_BYTES,
    MAX_POINTER_BYTES,
    POINTER_FILE,
    Moved,
    Reference,
    Stored,
    is_name,
    is_version,
    not_in,
)


class FolderRegistry:
    """Models in NAME/VERSION/ below a folder; a model folder at NAME/, as `train` writes it, counts as a version, too."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root)

    def names(self) -> list[str]:
        """The names of all models, sorted."""
        with plainly(f"The registry {self.url} cannot be listed"):
            if not self._root.is_dir():
                reason = "it is a file, not a folder" if self._root.exists() else "there is no such folder"
                raise RegistryNotFound(where=self.url, reason=reason)
            names = sorted(entry.name for entry in self._root.iterdir() if is_name(entry.name) and entry.is_dir())
        return [name for name in names if (self._root / name / POINTER_FILE).is_file() or self.versions(name)]

    def versions(self, name: str, beginning: str = "") -> list[str]:
        """The complete versions of a model, sorted; only those that begin so."""
        with plainly(f"The registry {self.url} cannot be listed"):
            if not (self._root / name).is_dir():
                return []
            found = {
                entry.name
                for entry in (self._root / name).iterdir()
                if is_version(entry.name) and (entry / FACTS_FILE).is_file()
            }
        found |= {version for version in (self._plain_version(name),) if version}
        return sorted(version for version in found if version.startswith(beginning))

    def path(self, name: str, version: str) -> Path:
        """Where a version lies. Raises ModelNotInRegistry."""
        place = self._root / name / version
        if (place / FACTS_FILE).is_file():
            return place
        if self._plain_version(name) == version:
            return self._root / name
        raise not_in(self, Reference(name, version))

    def contents(self, name: str, version: str) -> dict[str, Stored]:
        """The files under NAME/VERSION/; empty when there is no such folder."""
        place = self._root / name / version
        with plainly(f"The registry {self.url} cannot be read"):
            if not place.is_dir():
                return {}
            files = [entry for entry in place.iterdir() if entry.is_file() and not entry.name.startswith(".")]
            return {file.name: Stored(file.stat().st_size, _md5(file)) for file in files}

    def read_facts(self, name: str, version: str) -> bytes | None:
        """A version's model.json, MAX_FACTS_BYTES + 1 at most; None when there is none."""
        data = _read(self._root / name / version / FACTS_FILE, MAX_FACTS_BYTES + 1)
        if data is None and self._plain_version(name) == version:
            data = _read(self._root / name / FACTS_FILE, MAX_FACTS_BYTES + 1)
        return data

    def download(self, name: str, version: str, file: str, stored: Stored, into: Path, moved: Moved) -> None:
        """Copies one of a version's files to a new file."""
        with plainly(f"{file} of {name}@{version} cannot be copied"):
            write_whole(into, _chunks(self.path(name, version) / file, moved))

    def upload(self, name: str, version: str, file: Path, moved: Moved) -> None:
        """Puts a file into a version under its own name, whole or not at all."""
        place = self._root / name / version
        with plainly(f"The registry {self.url} cannot be written"):
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / file.name, _chunks(file, moved))

    def finish(self, name: str, version: str, facts: bytes) -> None:
        """Puts model.json into a version, which makes it complete; one that is there stays as it is."""
        target = self._root / name / version / FACTS_FILE
        with plainly(f"The registry {self.url} cannot be written"):
            if not target.exists():
                write_whole(target, (facts,))

    def pointer(self, name: str) -> tuple[bytes, str] | None:
        """A model's production.json and the digest of it that serves as its etag; None when there is none."""
        data = _read(self._root / name / POINTER_FILE, MAX_POINTER_BYTES)
        return None if data is None else (data, hashlib.sha256(data).hexdigest())

    def point(self, name: str, content: bytes, etag: str | None) -> bool:
        """Replaces production.json if its etag is still this (None: if there is none); says whether it did."""
        with plainly(f"The registry {self.url} cannot be written"):
            with locked(self._root / name / f".{POINTER_FILE}.lock"):
                found = self.pointer(name)
                if (found[1] if found else None) != etag:
                    return False
                write_whole(self._root / name / POINTER_FILE, (content,))
                return True

    def _plain_version(self, name: str) -> str | None:
        """The version of the model folder that stands at NAME/ itself, if one does and it is called so."""
        data = _read(self._root / name / FACTS_FILE, MAX_FACTS_BYTES + 1)
        if data is None:
            return None
        try:
            facts = json.loads(data)
            version = str(facts["version"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return version if facts.get("name") == name and is_version(version) else None


def _read(file: Path, limit: int) -> bytes | None:
    with plainly(f"{file} cannot be read"):
        if not file.is_file():
            return None
        with file.open("rb") as opened:
            return opened.read(limit)


def _chunks(file: Path, moved: Moved) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            yield chunk
            moved(len(chunk))


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
