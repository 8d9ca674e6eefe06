"""Moves results from one store to another, so that what arrives can be proved to be what left.

Each page is compared with what the target holds, only what differs is written, and all of it is read back: so
a copy that was stopped goes on where it was, and a second one finds nothing to do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from vehclass.errors import StoreError
from vehclass.records import Saved
from vehclass.stores import Store

RUNS_AT_A_TIME: Final = 500
MOST_RUNS: Final = 1_000_000


@dataclass(slots=True)
class Copied:
    """How far a copy is; the checksums are sums of every outcome's 128-bit digest, so their order does not matter."""

    outcomes: int = 0  # looked at in the first store
    written: int = 0
    there_before: int = 0
    newer_kept: int = 0  # the second store has a later one for the same image and model
    runs: int = 0
    checksum_from: int = 0
    checksum_to: int = 0

    @property
    def verified(self) -> bool:
        """Whether the second store answers the same for all that was to be copied."""
        return self.checksum_from == self.checksum_to


def copy(source: Store, target: Store, tell: Callable[[Copied], None] = lambda done: None) -> Copied:
    """Copies all results and runs; raises StoreError when what is read back is not what was written."""
    done = Copied()
    runs = source.runs(limit=MOST_RUNS)
    for start in range(0, len(runs), RUNS_AT_A_TIME):
        target.restore_runs(list(reversed(runs))[start : start + RUNS_AT_A_TIME])
    done.runs = len(runs)
    models = {model.version: model for model in source.models()}
    for page in source.saved():
        there = _by_key(target, page)
        older = [one for one in page if one.key not in there or there[one.key].finished_at <= one.finished_at]
        changed = [one for one in older if one.key not in there or there[one.key].digest() != one.digest()]
        for version, part in groupby(sorted(changed, key=lambda one: one.model), key=lambda one: one.model):
            target.restore(list(part), models[version])
        found = {**there, **_by_key(target, changed)} if changed else there
        for one in older:
            done.checksum_from += one.digest()
            done.checksum_to += found[one.key].digest() if one.key in found else 0
        done.outcomes += len(page)
        done.written += len(changed)
        done.newer_kept += len(page) - len(older)
        done.there_before += len(older) - len(changed)
        tell(done)
        if not done.verified:
            wrong = next(one for one in older if one.key not in found or found[one.key].digest() != one.digest())
            name = wrong.outcome.ref.name
            raise StoreError(url=target.url, reason=f"{name!r} was read back otherwise than it had been written")
    return done


def _by_key(store: Store, page: Sequence[Saved]) -> dict[tuple[str, str], Saved]:
    """What a store holds of the images of a page."""
    ids = sorted({one.outcome.ref.image_id for one in page})
    return {one.key: one for one in store.saved_of(ids)} if ids else {}
