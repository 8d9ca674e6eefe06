"""The marks of a run's models: read at its beginning, taken away before its first save, left at its end.

Between its first save and its end a run makes what marks say untrue, as where it gives a photo that was replaced its new
answer; and it may be stopped there. So no mark stands meanwhile that is about names that it may have to do with.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b

from vehclass.batch.listing import Listing, Mark, in_common, read_mark
from vehclass.batch.ports import Store
from vehclass.errors import LeaseLost, VehclassError
from vehclass.records import ModelInfo, RunTicket


class Marks:
    """What runs of these models over these prefixes of a source leave for one another.

    `include` are the patterns that names are chosen by; `kept` is whether this run looks at every name that they choose.
    """

    def __init__(
        self,
        store: Store,
        source: str,
        models: Sequence[ModelInfo],
        prefixes: Sequence[str],
        include: Sequence[str],
        kept: bool,
    ) -> None:
        self._store, self._kept = store, kept
        self._prefixes = tuple(sorted(prefixes))
        self._groups = [_digest([source, model.version]) for model in models]
        self._keys = [_digest([source, model.version, self._prefixes, sorted(include)]) for model in models]
        self._standing = [store.marks(group) for group in self._groups]

    def listing(self, began: datetime, *, full: bool) -> Listing:
        """A walk over the listing, from what the last run of this kind left; with `full`, or unless all is looked at, from nothing."""
        own = [read_mark(standing.get(key)) for standing, key in zip(self._standing, self._keys, strict=True)]
        return Listing(in_common(own) if self._kept and not full else None, began)

    def begin(self, tickets: Sequence[RunTicket]) -> None:
        """Makes room for what this run will leave; when rows are deleted meanwhile, it is gone."""
        if self._kept:
            for group, key, ticket in zip(self._groups, self._keys, tickets, strict=True):
                self._store.open_mark(group, key, ticket)

    def before_save(self, tickets: Sequence[RunTicket]) -> None:
        """Takes away what is about names of this run, once."""
        for standing, ticket in zip(self._standing, tickets, strict=True):
            stale = [key for key, text in standing.items() if text and self._concerns(read_mark(text))]
            if stale:
                self._store.drop_marks(stale, ticket)
            standing.clear()

    def _concerns(self, mark: Mark | None) -> bool:
        """Whether a mark is about names that may be this run's, too."""
        if mark is None:
            return True
        return any(a.startswith(b) or b.startswith(a) for a in mark.prefixes for b in self._prefixes)

    def leave(self, listing: Listing, tickets: Sequence[RunTicket]) -> None:
        """Leaves the mark of a run that accounted for every name. All of its results are saved: a store that has trouble
        here only makes the next run ask more. Raises LeaseLost.
        """
        mark = listing.mark(self._prefixes)
        if not self._kept or mark is None:
            return
        for key, ticket in zip(self._keys, tickets, strict=True):
            try:
                self._store.leave_mark(key, mark.as_text(), ticket)
            except LeaseLost:
                raise
            except VehclassError:
                continue


def _digest(words: object) -> str:
    return blake2b(json.dumps(words).encode(), digest_size=16).hexdigest()
