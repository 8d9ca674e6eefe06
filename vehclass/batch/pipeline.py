"""From a container to rows: list -> which are new? -> read -> decode -> classify -> save.

Each lane decodes and runs what it has decoded through the network by itself, so that on a CPU every core is busy
with one or the other, and a GPU is fed by whichever lane is ready. One photo in, one outcome out.
"""

import fnmatch
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from signal import SIGINT, Signals
from typing import Final

from vehclass.batch.batches import Read, Todo, Turn
from vehclass.batch.flow import Allowance, batched, emptied, gathered, spread
from vehclass.batch.listing import Listing
from vehclass.batch.marks import Marks
from vehclass.batch.ports import Classifier, DecodeAll, Source, Store
from vehclass.batch.profile import Profile
from vehclass.batch.reading import TOGETHER, Reader
from vehclass.errors import LeaseLost, TooManyFailures
from vehclass.records import ImageRef, ModelInfo, Outcome, RunTicket, now

NAMES_AHEAD: Final = 4_000  # how far the listing may run ahead of the classifying, and a page more
LISTINGS: Final = 8  # prefixes that are listed side by side
READ_AHEAD: Final = 2 * TOGETHER  # of encoded photos that wait for a lane, beside those that each reader has in hand
PART_BYTES: Final = 8 * 2**20  # of encoded photos that a lane takes at a time, or a single photo
READERS: Final = 4  # threads that read at first; more, up to what the source takes, while classifying waits for them
SAVE_AHEAD: Final = 256  # outcomes that may wait for a store that is slower than the classifying
SAVE_TOGETHER: Final = 256  # outcomes that are worth a transaction of their own,
SAVE_EVERY: Final = 0.5  # or so many seconds: what a kill takes back is done again
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


@dataclass(slots=True)
class Progress:
    """How far a run is, for those who watch; the counts that last are the store's."""

    listed: int = 0
    asked: int = 0  # of those listed, how many the store had to be asked about
    new_to: dict[int, int] = field(default_factory=dict)  # by model, in the order of Hands.classifiers
    listing_done: bool = False
    accounted: bool = False  # every name was listed, and none was left out by a limit or a stop
    done: int = 0
    failed: int = 0
    bytes_new: int = 0
    left: datetime | None = None  # when the oldest was modified of those that this run leaves to another
    _waiting: dict[str, datetime] = field(default_factory=dict, repr=False)  # by image, of those that were taken
    _adding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def new(self) -> int:
        """Answers to give: images, for each model that they are new to."""
        return sum(self.new_to.values())

    def count_listed(self, names: int) -> None:
        """Adds names; several prefixes may be listed at a time."""
        with self._adding:
            self.listed += names

    def count_asked(self, names: int) -> None:
        """Adds names that the store is asked about."""
        with self._adding:
            self.asked += names

    def count_new(self, todos: Sequence[Todo]) -> None:
        """Adds images that are taken."""
        for todo in todos:
            self.bytes_new += todo.ref.size
            self._waiting[todo.ref.image_id] = todo.ref.modified_at
            for model in todo.models:
                self.new_to[model] = self.new_to.get(model, 0) + 1

    def count_left(self, refs: Iterable[ImageRef]) -> None:
        """Takes note of images that this run leaves to another: beyond its limit, or to be tried again."""
        for ref in refs:
            self.left = ref.modified_at if self.left is None else min(self.left, ref.modified_at)

    def leave(self, ref: ImageRef) -> None:
        """Takes note of an image that was taken and is left after all."""
        self._waiting.pop(ref.image_id, None)
        self.count_left([ref])

    def count_done(self, outcomes: Iterable[Outcome]) -> None:
        """Takes note of images that are saved."""
        for outcome in outcomes:
            self.done += 1
            self._waiting.pop(outcome.ref.image_id, None)
            if outcome.failure is not None:
                self.failed += 1
                if not outcome.failure.permanent:
                    self.count_left([outcome.ref])

    def oldest_left(self) -> datetime | None:
        """When the oldest image was modified that is known to be left; of what was not listed nobody knows."""
        return min([*self._waiting.values(), *([self.left] if self.left else [])], default=None)


@dataclass(frozen=True, slots=True)
class Hands:
    """What a run works with."""

    source: Source
    decode: DecodeAll
    classifiers: tuple[Classifier, ...]
    store: Store
    decode_apart: DecodeAll | None = None  # not to be brought down by an image, where `decode` is

    @property
    def models(self) -> list[ModelInfo]:
        """The models, in the order of the classifiers."""
        return [classifier.info for classifier in self.classifiers]


@dataclass(slots=True)
class Watch:
    """How a run is watched and stopped from outside: set `stop`, after saying which signal asked for it."""

    tell: Callable[[Progress], None] = lambda progress: None
    begun: Callable[[Sequence[str]], None] = lambda run_ids: None  # told the ids once the leases are taken
    progress: Progress = field(default_factory=Progress)
    profile: Profile = field(default_factory=Profile)
    stop: threading.Event = field(default_factory=threading.Event)
    signal: Signals = SIGINT
    lost: LeaseLost | None = None  # why `stop` is set, where no signal asked for it


def classify_new(job: Job, hands: Hands, tickets: Sequence[RunTicket], watch: Watch) -> None:
    """Classifies what is new and saves it as it comes, until all is done or `watch.stop` is set.

    Each model has its ticket. Raises TooManyFailures, LeaseLost, ServiceUnreachable or StoreError; what was saved
    stays saved.
    """
    progress, marks = watch.progress, marks_of(job, hands)
    listing = marks.listing(now(), full=job.full or job.retry_failed)
    marks.begin(tickets)
    ready = outcomes_of(job, hands, new_images(job, hands, listing, watch), watch)
    for outcomes in gathered(ready, SAVE_AHEAD, SAVE_TOGETHER, SAVE_EVERY, "gather"):
        with watch.profile.stage("save"):
            marks.before_save(tickets)
            for number, (model, ticket) in enumerate(zip(hands.models, tickets, strict=True)):
                own = [outcome for of, outcome in outcomes if of == number]
                if own:
                    hands.store.save(own, model, ticket, max_attempts=job.max_attempts)
        progress.count_done(one for _, one in outcomes)
        for _, one in outcomes:
            if one.failure is not None and not one.failure.permanent:
                listing.try_again(one.ref)
        watch.tell(progress)
        if progress.done >= FAILURES_COUNT_FROM and progress.failed > job.max_failure_rate * progress.done:
            raise TooManyFailures(
                failed=progress.failed, done=progress.done, allowed=job.max_failure_rate, run_id=tickets[0].run_id
            )
    if progress.accounted and not watch.stop.is_set():
        marks.leave(listing, tickets)


def marks_of(job: Job, hands: Hands) -> Marks:
    """What the last complete runs of these models left."""
    prefixes = [f"{hands.source.prefix}{prefix}" for prefix in job.prefixes]
    return Marks(hands.store, hands.source.url, hands.models, prefixes, job.include, kept=job.since is None)


def new_images(job: Job, hands: Hands, listing: Listing, watch: Watch) -> Iterator[Todo]:
    """The images to classify, page by page, with the listing running a little ahead."""
    progress, images = watch.progress, 0
    for page in spread(
        lambda prefixes: (new for prefix in prefixes for new in new_pages(prefix, job, hands, listing, watch)),
        job.prefixes,
        min(LISTINGS, len(job.prefixes)),
        NAMES_AHEAD,
        "list",
        weigh=len,
    ):
        if job.limit is not None:
            progress.count_left(todo.ref for todo in page[job.limit - images :])
            del page[job.limit - images :]
        images += len(page)
        progress.count_new(page)
        watch.tell(progress)
        for todo in emptied([page]):
            if watch.stop.is_set():
                return
            yield todo
        if watch.stop.is_set():
            return
        if images == job.limit:
            break
    else:
        progress.accounted = True
    progress.listing_done = True
    watch.tell(progress)


def new_pages(prefix: str, job: Job, hands: Hands, listing: Listing, watch: Watch) -> Iterator[list[Todo]]:
    """What is listed under a prefix and new to a model, page by page."""

    def wanted() -> Iterator[list[ImageRef]]:
        pages = hands.source.pages(prefix)
        while True:
            with watch.profile.stage("list"):
                page = next(pages, None)
            if page is None:
                return
            chosen = [ref for ref in page if job.wants(ref)]
            watch.progress.count_listed(len(chosen))
            yield chosen

    for refs in listing.to_ask(wanted()):
        if refs:
            watch.progress.count_asked(len(refs))
            with watch.profile.stage("ask"):
                new = [hands.store.unseen(refs, model, retry_failed=job.retry_failed) for model in hands.models]
            yield together(refs, new)


def together(refs: Sequence[ImageRef], new: Sequence[Sequence[ImageRef]]) -> list[Todo]:
    """The images that are new to a model at least, in order, each with the models that it is new to."""
    ids = [{ref.image_id for ref in one} for one in new]
    found = [Todo(ref, tuple(n for n, one in enumerate(ids) if ref.image_id in one)) for ref in refs]
    return [todo for todo in found if todo.models]


def outcomes_of(job: Job, hands: Hands, todos: Iterator[Todo], watch: Watch) -> Iterator[list[tuple[int, Outcome]]]:
    """The outcomes of images, each with the number of its model, batch by batch as they are ready."""
    source, classifiers = hands.source, hands.classifiers

    # Whoever waits for room holds nothing, and what waits for more, a part that is not full, weighs less than one: so there
    # is room for the largest file at some time. The other parts are for lanes to decode while the next are read.
    memory = Allowance((job.lanes + 1) * PART_BYTES + job.max_bytes)
    most = min(classifier.batch_size for classifier in classifiers)

    def classify(parts: Iterator[list[Read]]) -> Iterator[list[tuple[int, Outcome]]]:
        turn = Turn(hands.decode, classifiers, watch.profile)
        for part in parts:
            try:
                left: Sequence[Read] = part
                while left and not watch.stop.is_set():
                    left = turn.take(left)
                    if turn.is_over:
                        yield turn.outcomes()
            finally:
                room = sum(map(held, part))
                part.clear()  # whoever else still has the list
                left = ()
                memory.give_back(room)
            if watch.stop.is_set():
                break
        yield turn.outcomes()

    readers = min(READERS, source.concurrency)
    reader = Reader(source, memory, job.max_bytes, watch.profile)
    # Some are read ahead, so that a lane that begins a batch finds it there.
    reads = spread(reader.some, todos, readers, READ_AHEAD, "read", source.concurrency, reader.weight)
    parts = batched(emptied(reads), most, held, PART_BYTES)
    try:
        for outcomes in spread(classify, parts, job.lanes, 1, "classify"):
            if outcomes:
                yield outcomes
    finally:
        memory.close()  # before the readers are waited for: some may wait for room
        reads.close()


def held(one: Read) -> int:
    """What an image that was read counts for in memory: what it was listed with, before anybody had its bytes."""
    return 0 if one.error is not None else one.ref.size


def count_new(job: Job, hands: Hands, watch: Watch) -> list[Todo]:
    """For a dry run: counts all that is new, and returns the first few to try the speed on."""
    first: list[Todo] = []
    listing = marks_of(job, hands).listing(now(), full=job.full or job.retry_failed)
    for todo in new_images(job, hands, listing, watch):
        watch.progress.leave(todo.ref)
        if len(first) < 2 * hands.classifiers[0].batch_size:
            first.append(todo)
    return first
