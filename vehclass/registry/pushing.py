"""A model folder -> a version in a registry, model.json last; what is there already is not sent again."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vehclass.errors import UsageError
from vehclass.model.folder import DOCUMENTS, FACTS_FILE, ModelFolder
from vehclass.model.signature import SIGNATURE_FILE
from vehclass.registry.files import plainly
from vehclass.registry.layout import MAX_DOCUMENT_BYTES, Registry, Stored, is_file_name, is_name, is_version

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did: the files it sent, and their bytes; none when the version was there whole."""

    key: str
    files: tuple[str, ...]
    bytes: int


def push(folder: ModelFolder, registry: Registry, say: Say) -> Pushed:
    """Puts a verified model folder into a registry.

    One that was stopped goes on where it was; of a version that is there, only what is missing or damaged is sent.
    Raises UsageError, or what the registry raises.
    """
    name, version = folder.info.name, folder.info.version
    odd = [file for file in folder.files if not is_file_name(file)]
    if not is_name(name) or not is_version(version) or odd:
        what = f"its file {odd[0]!r}" if odd else f"the model in {folder.path} ({name!r})"
        raise UsageError(
            reason=f"A registry cannot have {what}: names have letters, digits, '.', '_' and '-', and begin with a "
            "letter or digit. `vehclass train --out` into a folder with such a name."
        )
    there = registry.contents(name, version)
    # A signature may be made, or made anew, after a version was put there; the documents stay as they are.
    going = {SIGNATURE_FILE} if FACTS_FILE in there else {SIGNATURE_FILE, *DOCUMENTS}
    documents = [file for file in sorted(going) if _may_go_along(folder.path / file)]
    with plainly(f"The model in {folder.path} cannot be read"):
        wanted = [folder.path / file for file in (*folder.files, *documents)]
        missing = [file for file in wanted if not _is_there(file, there.get(file.name))]
        total = sum(file.stat().st_size for file in missing)
        facts = (folder.path / FACTS_FILE).read_bytes()
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        say(f"Uploading {folder.info.key}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")

    for file in missing:
        registry.upload(name, version, file, moved)
    sent = [file.name for file in missing]
    if FACTS_FILE not in there:
        registry.finish(name, version, facts)
        sent.append(FACTS_FILE)
        total += len(facts)
    return Pushed(folder.info.key, tuple(sent), total)


def _may_go_along(file: Path) -> bool:
    return file.is_file() and file.stat().st_size <= MAX_DOCUMENT_BYTES


def _is_there(file: Path, stored: Stored | None) -> bool:
    if stored is None or stored.size != file.stat().st_size:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == stored.md5
