"""Keeps an unfinished training on disk, so that it goes on after a kill with one epoch lost at most."""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vehclass.errors import UsageError

STATE_FILE: Final = "state.npz"
BEST_FILE: Final = "best.npz"
LOCK_FILE: Final = "lock"

Values = list[NDArray[Any]]


@dataclass(slots=True)
class State:
    """How far a training is: epochs done, what each brought, seconds spent, the best epoch, the lowest loss and its standard
    error, the loss that whole training has to get below to be worth more than the heads alone, the batch's size, whether it came
    to its end.

    The best epoch is the last one within an error of the lowest; -1 as long as nothing was as good as the heads alone.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    spent: float = 0.0
    best: int = -1
    best_loss: float = math.inf
    best_error: float = 0.0
    heads_loss: float = math.inf
    batch_size: int = 0
    ended: bool = False


class Unfinished:
    """The folder of a training that is under way, beside where its model will be; one process at a time has it."""

    def __init__(self, out: Path, fingerprint: Mapping[str, Any]) -> None:
        self.folder = out.parent / f".{out.name}.training"
        self._out = out
        self._mark = hashlib.sha256(json.dumps(fingerprint, sort_keys=True, default=str).encode()).hexdigest()

    @contextmanager
    def held(self, *, resume: bool) -> Iterator[State | None]:
        """Takes the folder, and yields the state to go on from, if there is one and it is wanted.

        A training that ends takes its folder with it; one that is stopped or fails after an epoch leaves it. Raises
        UsageError when another process trains here, or what is there belongs to other data or other options.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK_FILE).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(
                    reason=f"Another training is making {self._out}. Wait for it, or name another --out."
                ) from error
            if not resume:
                for name in (STATE_FILE, BEST_FILE):
                    (self.folder / name).unlink(missing_ok=True)
            state = self._state()
            try:
                yield state
            except BaseException:
                if not self.begun:
                    shutil.rmtree(self.folder, ignore_errors=True)
                raise
            shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Forgets what is kept: there is nothing in it to go on from."""
        (self.folder / STATE_FILE).unlink(missing_ok=True)

    @property
    def begun(self) -> bool:
        """Whether there is an epoch to go on from."""
        return (self.folder / STATE_FILE).exists()

    @property
    def last_kept(self) -> int | None:
        """When the last whole epoch was kept, in nanoseconds; None when there is none."""
        try:
            return (self.folder / STATE_FILE).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _state(self) -> State | None:
        if not self.begun:
            return None
        with np.load(self.folder / STATE_FILE) as kept:
            facts = json.loads(str(kept["facts"]))
        if facts.pop("mark") != self._mark:
            # Kept: the right command can still go on from it.
            raise UsageError(
                reason=f"The unfinished training of {self._out} had other photos or other options. Repeat its command "
                "with --resume, or leave --resume out to start anew."
            )
        return State(**facts)

    def save(self, state: State, variables: Sequence[Any], best: Sequence[Any] | None) -> None:
        """Keeps the state and the values of all variables, and those of the best epoch where this is it."""
        if best is not None:
            self.save_best(best)
        facts = {name: getattr(state, name) for name in state.__slots__}
        self._write(STATE_FILE, {"facts": np.array(json.dumps({**facts, "mark": self._mark}))}, variables)

    def save_best(self, values: Sequence[Any]) -> None:
        """Keeps the values of the best network so far."""
        self._write(BEST_FILE, {}, values)

    def variables(self) -> Values:
        """The kept values, in the order in which they were given."""
        return self._read(STATE_FILE)

    def best(self) -> Values:
        """The values of the best epoch."""
        return self._read(BEST_FILE)

    def _read(self, name: str) -> Values:
        with np.load(self.folder / name) as kept:
            return [kept[f"v{n}"] for n in range(sum(key.startswith("v") for key in kept.files))]

    def _write(self, name: str, facts: Mapping[str, Any], values: Sequence[Any]) -> None:
        part = self.folder / f"{name}.part"
        try:
            with part.open("wb") as file:
                np.savez(
                    file, allow_pickle=False, **facts, **{f"v{n}": np.asarray(value) for n, value in enumerate(values)}
                )
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            if not is_full(error):
                raise
            raise UsageError(
                reason=f"The disk of {self.folder.parent} is full, so training cannot keep its progress. Make room, or "
                "choose another --out."
            ) from error
        part.replace(self.folder / name)


def is_full(error: OSError) -> bool:
    """Whether a file could not be written because the disk, or a quota, has no room for it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
