"""From a container to rows: list -> which are new? -> read -> decode -> classify -> save.

Each lane decodes a batch and runs it through the network by itself, so that on a CPU every core is busy
with one or the other, and a GPU is fed by whichever lane is ready. One photo in, one outcome out.
"""

import fnmatch
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from signal import SIGINT, Signals
from typing import Final

import numpy as np

from vehclass.batch.flow import Allowance, batched, gathered, in_lanes, spread
from vehclass.batch.listing import Listing, read_mark
from vehclass.batch.ports import Classifier, Decode, Source, Store
from vehclass.batch.profile import Profile
from vehclass.errors import DecodeError, ImageError, ReadError, TooManyFailures
from vehclass.records import Failure, ImageFacts, ImageRef, ModelInfo, Outcome, RunTicket, now

PAGES_AHEAD: Final = 4  # how far the listing may run ahead of the classifying, in pages
LISTINGS: Final = 8  # prefixes that are listed side by side
BATCH_BYTES: Final = 64 * 2**20  # of encoded photos, after which a batch is closed early
SAVE_AHEAD: Final = 256  # outcomes that may wait for a store that is slower than the classifying
FAILURES_COUNT_FROM: Final = 100  # images, before a share of failures means anything


@dataclass(frozen=True, slots=True)
class Job:
    """Which images a run is about, and when it should stop."""

    prefixes: tuple[str, ...] = ("",)  # none of which begins another
    include: tuple[str, ...] = ()
    since: datetime | None = None
    limit: int | None = None
    retry_failed: bool = False
    full: bool = False  # ask the store about every name, whatever an earlier run left
    max_failure_rate: float = 0.5
    max_attempts: int = 3
    max_bytes: int = 200_000_000
    lanes: int = 1

    def wants(self, ref: ImageRef) -> bool:
        """Whether a listed name is one to look at."""
        if self.since is not None and ref.modified_at < self.since:
            return False
        return not self.include or any(fnmatch.fnmatchcase(ref.name, pattern) for pattern in self.include)

    def mark_key(self, source: str, model: ModelInfo) -> str | None:
        """Under what a run of this leaves its mark; None where it does not look at every name."""
        if self.since is not None:
            return None
        asked = json.dumps([source, model.version, sorted(self.prefixes), sorted(self.include)])
        return blake2b(asked.encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class Progress:
    """How far a run is, for those who watch; the counts that last are the store's."""

    listed: int = 0
    asked: int = 0  # of those listed, how many the store had to be asked about
    new: int = 0
    listing_done: bool = False
    accounted: bool = False  # every name was listed, and none was left out by a limit or a stop
    done: int = 0
    failed: int = 0
    bytes_new: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """An image with its bytes, or with what kept them away."""

    ref: ImageRef
    data: bytes = b""
    error: ReadError | None = None


@dataclass(frozen=True, slots=True)
class Hands:
    """What a run works with."""

    source: Source
    decode: Decode
    classifier: Classifier
    store: Store


@dataclass(slots=True)
class Watch:
    """How a run is watched and stopped from outside: set `stop`, after saying which signal asked for it."""

    tell: Callable[[Progress], None] = lambda progress: None
    progress: Progress = field(default_factory=Progress)
    profile: Profile = field(default_factory=Profile)
    stop: threading.Event = field(default_factory=threading.Event)
    signal: Signals = SIGINT


def classify_new(job: Job, hands: Hands, ticket: RunTicket, watch: Watch) -> None:
    """Classifies what is new and saves it as it comes, until all is done or `watch.stop` is set.

    Raises TooManyFailures, LeaseLost, ServiceUnreachable or StoreError; what was saved stays saved.
    """
    model, progress = hands.classifier.info, watch.progress
    listing = begin_listing(job, hands)
    ready = outcomes_of(job, hands, new_images(job, hands, listing, watch), watch)
    for outcomes in gathered(ready, SAVE_AHEAD, "gather"):
        with watch.profile.stage("save"):
            hands.store.save(outcomes, model, ticket, max_attempts=job.max_attempts)
        progress.done += len(outcomes)
        progress.failed += sum(one.failure is not None for one in outcomes)
        for one in outcomes:
            if one.failure is not None and not one.failure.permanent:
                listing.try_again(one.ref)
        watch.tell(progress)
        if progress.done >= FAILURES_COUNT_FROM and progress.failed > job.max_failure_rate * progress.done:
            raise TooManyFailures(
                failed=progress.failed, done=progress.done, allowed=job.max_failure_rate, run_id=ticket.run_id
            )
    key, mark = job.mark_key(hands.source.url, model), listing.mark()
    if progress.accounted and not watch.stop.is_set() and key is not None and mark is not None:
        hands.store.leave_mark(key, mark.as_text(), ticket)


def begin_listing(job: Job, hands: Hands) -> Listing:
    """A walk over the source's listing that starts from what the last complete run of this job left."""
    key = job.mark_key(hands.source.url, hands.classifier.info)
    all_of_them = key is None or job.full or job.retry_failed
    return Listing(None if all_of_them or key is None else read_mark(hands.store.mark(key)), now())


def new_images(job: Job, hands: Hands, listing: Listing, watch: Watch) -> Iterator[ImageRef]:
    """The images to classify, page by page, with the listing running a little ahead."""
    progress, counting = watch.progress, threading.Lock()

    def wanted(prefix: str) -> Iterator[list[ImageRef]]:
        pages = hands.source.pages(prefix)
        while True:
            with watch.profile.stage("list"):
                page = next(pages, None)
            if page is None:
                return
            chosen = [ref for ref in page if job.wants(ref)]
            with counting:
                progress.listed += len(chosen)
            yield chosen

    def unseen(prefix: str) -> Iterator[list[ImageRef]]:
        for refs in listing.to_ask(wanted(prefix)):
            with counting:
                progress.asked += len(refs)
            if refs:
                with watch.profile.stage("ask"):
                    new = hands.store.unseen(refs, hands.classifier.info, retry_failed=job.retry_failed)
                yield new

    for page in spread(unseen, job.prefixes, min(LISTINGS, len(job.prefixes)), PAGES_AHEAD, "list"):
        room = len(page) if job.limit is None else job.limit - progress.new
        taken = page[:room]
        progress.new += len(taken)
        progress.bytes_new += sum(ref.size for ref in taken)
        watch.tell(progress)
        for ref in taken:
            if watch.stop.is_set():
                return
            yield ref
        if job.limit is not None and progress.new >= job.limit:
            break
        if watch.stop.is_set():
            return
    else:
        progress.accounted = True
    progress.listing_done = True
    watch.tell(progress)


def outcomes_of(job: Job, hands: Hands, refs: Iterator[ImageRef], watch: Watch) -> Iterator[list[Outcome]]:
    """The outcomes of images, batch by batch as they are ready."""
    source, classifier = hands.source, hands.classifier

    # Room for a lane's batch that is not full yet and for the largest file, so that neither waits for the other.
    memory = Allowance(BATCH_BYTES + job.max_bytes)

    def read(ref: ImageRef) -> Read:
        try:
            if ref.size > job.max_bytes:
                raise ReadError(
                    "too_many_bytes", f"It has {ref.size} bytes; at most {job.max_bytes} are read.", permanent=True
                )
            memory.take(ref.size)
        except ReadError as error:
            return Read(ref, error=error)
        try:
            with watch.profile.stage("read"):
                return Read(ref, source.read(ref))
        except BaseException as error:
            memory.give_back(ref.size)
            if isinstance(error, ReadError):
                return Read(ref, error=error)
            raise

    def classify(batch: list[Read]) -> list[Outcome]:
        try:
            return [] if watch.stop.is_set() else classify_batch(batch, hands.decode, classifier, watch.profile)
        finally:
            memory.give_back(sum(one.ref.size for one in batch if one.error is None))

    reads = in_lanes(read, refs, source.concurrency, source.concurrency, "read")
    batches = batched(reads, classifier.batch_size, lambda one: len(one.data), BATCH_BYTES)
    try:
        for outcomes in in_lanes(classify, batches, job.lanes, 1, "classify"):
            if outcomes:
                yield outcomes
    finally:
        memory.close()


def classify_batch(
    batch: Sequence[Read], decode: Decode, classifier: Classifier, profile: Profile | None = None
) -> list[Outcome]:
    """One outcome an image: decoded one by one, classified together."""
    profile = profile or Profile()
    width, height = classifier.info.input_size
    pixels = np.empty((len(batch), height, width, 3), np.uint8)
    outcomes: list[Outcome] = []
    decoded: list[tuple[ImageRef, ImageFacts]] = []
    for item in batch:
        try:
            if item.error is not None:
                raise item.error
            with profile.stage("decode"):
                pixels[len(decoded)], facts = decode(item.data)
            decoded.append((item.ref, facts))
        except (ReadError, DecodeError) as error:
            outcomes.append(Outcome(item.ref, failure=as_failure(error)))
    with profile.stage("forward"):
        answers = classifier.classify(pixels[: len(decoded)]) if decoded else []
    for (ref, facts), answer in zip(decoded, answers, strict=True):
        if isinstance(answer, ImageError):
            outcomes.append(Outcome(ref, facts, failure=as_failure(answer)))
        else:
            outcomes.append(Outcome(ref, facts, answer))
    return outcomes


def as_failure(error: ImageError) -> Failure:
    """An image's error as its row will say it."""
    return Failure(error.stage, error.code, str(error), error.permanent)


def count_new(job: Job, hands: Hands, watch: Watch) -> list[ImageRef]:
    """For a dry run: counts all that is new, and returns the first few to try the speed on."""
    first: list[ImageRef] = []
    for ref in new_images(job, hands, begin_listing(job, hands), watch):
        if len(first) < 2 * hands.classifier.batch_size:
            first.append(ref)
    return first
