"""Writes files so that nobody ever sees half of one, and lets one process at a time do what only one may."""

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vehclass.errors import UsageError


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Holds a lock file until the block ends; waits for whoever has it. The lock of a killed process is free."""
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(target: Path, chunks: Iterable[bytes]) -> None:
    """Writes a file beside its place, and puts it there when it is whole and on the disk."""
    draft = beside(target)
    try:
        with draft.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def beside(target: Path) -> Path:
    """A free name for what is to become `target`, on the same disk."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")


@contextmanager
def plainly(what: str, otherwise: str = "") -> Iterator[None]:
    """Turns what the system says of files (no right, no space, a read-only disk) into a sentence for the user."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UsageError(reason=f"{what}: {error.strerror or error}{where}.{otherwise}") from error
