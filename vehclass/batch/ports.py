"""What the batch needs of a source, a classifier and a store; any class with these shapes will do."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from vehclass.errors import DecodeError, ImageError
from vehclass.imaging import Pixels
from vehclass.records import (
    Counts,
    ImageFacts,
    ImageRef,
    LeaseClaim,
    ModelInfo,
    Outcome,
    Prediction,
    RunEnd,
    RunStart,
    RunTicket,
)

Decode = Callable[[bytes, tuple[int, int]], tuple[Pixels, ImageFacts]]  # bytes, and a size as (width, height)
# Several, in order; pixels are good until the next are asked for.
DecodeAll = Callable[[Sequence[bytes], tuple[int, int]], Iterator[tuple[Pixels, ImageFacts] | DecodeError]]


class Hold(Protocol):
    """A lease at the source itself."""

    def renew(self) -> None:
        """Keeps it; raises LeaseLost."""
        ...

    def free(self) -> None:
        """Gives it back."""
        ...


class Source(Protocol):
    """Where photos are."""

    url: str  # canonical, without secrets: part of every image's key
    prefix: str  # that every name begins with, and that prefixes are below
    concurrency: int  # how many reads it takes at a time, at most

    def check(self) -> None:
        """Raises what is wrong with the source as a whole, before any work."""
        ...

    def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
        """Every image under a prefix, page by page, in no promised order."""
        ...

    def hold(self, claim: LeaseClaim) -> Hold | None:
        """A second lease, at the source itself, where it has such and they are wanted; raises LeaseHeld."""
        ...

    def read(self, ref: ImageRef) -> bytes:
        """An image's bytes at the listed etag; raises ReadError, or ServiceUnreachable for the whole source."""
        ...


class Classifier(Protocol):
    """A model that is ready to answer, from several threads at once."""

    info: ModelInfo
    batch_size: int

    def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
        """One answer a picture, in order, for uint8 [n, height, width, 3]."""
        ...


class Store(Protocol):
    """Where results go."""

    url: str

    def unseen(self, refs: Sequence[ImageRef], model: ModelInfo, *, retry_failed: bool) -> list[ImageRef]:
        """Those of a page that the model has no result for at their etag."""
        ...

    def save(self, outcomes: Sequence[Outcome], model: ModelInfo, ticket: RunTicket, *, max_attempts: int) -> None:
        """Writes a batch in one transaction, under keys that make repeating it harmless."""
        ...

    def take_lease(self, claim: LeaseClaim) -> RunTicket:
        """The right to write; raises LeaseHeld."""
        ...

    def renew_lease(self, ticket: RunTicket, seconds: int) -> None:
        """Keeps that right; raises LeaseLost."""
        ...

    def free_lease(self, ticket: RunTicket) -> None:
        """Gives it back."""
        ...

    def start_run(self, start: RunStart, model: ModelInfo) -> None:
        """Writes that a run of a model has begun; goes before the first save."""
        ...

    def end_run(self, run_id: str, end: RunEnd) -> None:
        """Writes how a run ended, with its counts."""
        ...

    def counts(self, run_id: str) -> Counts:
        """What a run has finished so far, as the store has it."""
        ...

    def marks(self, group: str) -> dict[str, str]:
        """What complete runs left, '' where it is no longer good, by key: of a group, which is a source and a model."""
        ...

    def open_mark(self, group: str, key: str, ticket: RunTicket) -> None:
        """Makes room for a run's mark; raises LeaseLost. Whoever deletes results deletes all marks, this room included."""
        ...

    def drop_marks(self, keys: Sequence[str], ticket: RunTicket) -> None:
        """Makes marks no longer good; raises LeaseLost."""
        ...

    def leave_mark(self, key: str, mark: str, ticket: RunTicket) -> None:
        """Leaves a run's mark where there still is the room for it; raises LeaseLost."""
        ...
