"""What the store is asked about: after a run that accounted for every name only what changed, and never too little."""

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from vehclass.batch import listing, runs
from vehclass.batch.batches import one_by_one
from vehclass.batch.listing import Listing, Mark, read_mark
from vehclass.batch.pipeline import Hands, Job, Watch
from vehclass.errors import ImageError, Interrupted, ReadError, ServiceUnreachable, StoreError
from vehclass.imaging import Pixels
from vehclass.records import (
    ImageFacts,
    ImageRef,
    LeaseClaim,
    ModelInfo,
    Prediction,
    ResultFilter,
    RunTicket,
    Task,
    image_id,
    now,
)
from vehclass.stores import Store, open_store

BEGAN = datetime(2026, 11, 1, 22, 0, tzinfo=UTC)
OLD = BEGAN - timedelta(days=300)
INFO = ModelInfo("stand-in", "v1", (Task("parity", ("even", "odd")),), (1, 1), "2026-01-01")


def ref(name: str, etag: str = "1", modified_at: datetime = OLD) -> ImageRef:
    return ImageRef(image_id("made-up://", name), "made-up://", name, etag, 1, modified_at)


def many(count: int) -> list[ImageRef]:
    return [ref(f"2026/11/IMG_{n:06d}.jpg") for n in range(count)]


def walked(refs: list[ImageRef], before: Mark | None, began: datetime = BEGAN) -> tuple[list[list[ImageRef]], Mark]:
    """The portions that are asked about, and the mark."""
    walk = Listing(before, began)
    pages = [refs[start : start + 1_000] for start in range(0, len(refs), 1_000)]
    asked = list(walk.to_ask(pages))
    mark = walk.mark()
    assert mark is not None
    read = read_mark(mark.as_text())
    assert read == mark
    return asked, read


def flat(asked: list[list[ImageRef]]) -> list[ImageRef]:
    return [one for page in asked for one in page]


def test_without_a_mark_everything_is_asked_about() -> None:
    refs = many(20_000)
    assert flat(walked(refs, None)[0]) == refs


def test_where_nothing_changed_nothing_is_asked() -> None:
    refs = many(50_000)
    mark = walked(refs, None)[1]
    assert 4 < len(mark.stretches) < 40
    assert walked(refs, mark, BEGAN + timedelta(days=1)) == ([], replace(mark, began=BEGAN + timedelta(days=1)))


def test_only_what_is_newer_is_asked_about_in_few_questions() -> None:
    refs = many(100_000)
    mark = walked(refs, None)[1]
    new = [ref(f"2026/11/IMG_{n:06d}b.jpg", modified_at=BEGAN + timedelta(hours=1)) for n in range(0, 100_000, 100)]
    asked, after = walked(sorted([*refs, *new], key=lambda one: one.name), mark, BEGAN + timedelta(days=1))
    assert flat(asked) == new
    assert len(asked[0]) < 20  # the first photos do not wait for the end of the listing
    assert len(asked) < 20
    assert flat(walked(sorted([*refs, *new], key=lambda one: one.name), after, BEGAN + timedelta(days=2))[0]) == []


@pytest.mark.parametrize("change", ["replaced by an older one", "moved in with its old time", "undeleted"])
def test_what_is_older_than_the_mark_is_not_missed(change: str) -> None:
    refs = many(50_000)
    mark = walked([*refs[:30_000], *refs[30_001:]] if change == "undeleted" else refs, None)[1]
    if change == "undeleted":
        changed = refs[30_000]
    elif change == "moved in with its old time":
        changed = ref("2026/11/IMG_030000_moved.jpg", modified_at=OLD - timedelta(days=100))
        refs.insert(30_001, changed)
    else:
        changed = refs[30_000] = ref(refs[30_000].name, "another", OLD - timedelta(days=100))
    asked = flat(walked(refs, mark, BEGAN + timedelta(days=1))[0])
    assert changed in asked
    assert len(asked) <= 3 * listing.LONGEST


def test_a_deleted_photo_costs_its_stretch_at_most() -> None:
    refs = many(50_000)
    mark = walked(refs, None)[1]
    asked = flat(walked(refs[:20_000] + refs[20_001:], mark)[0])
    assert len(asked) <= 2 * listing.LONGEST


def test_names_and_etags_do_not_run_into_each_other() -> None:
    mark = walked([ref("a", "b c"), ref("d", "e")], None)[1]
    assert len(flat(walked([ref("a b", "c"), ref("d", "e")], mark)[0])) == 2


def test_names_that_are_no_unicode() -> None:
    refs = [ref("photo\udcff.jpg"), ref("line\nbreak.jpg")]
    assert walked(refs, walked(refs, None)[1])[0] == []


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "nonsense",
        "[]",
        "null",
        '{"format": 2}',
        '{"format": 1, "began": "x", "stretches": "", "again": [], "prefixes": []}',
    ],
)
def test_a_mark_that_cannot_be_read_is_none(text: str | None) -> None:
    assert read_mark(text) is None


def test_too_many_to_try_again_leave_no_mark() -> None:
    walk = Listing(None, BEGAN)
    for one in many(listing.MOST_AGAIN + 1):
        walk.try_again(one)
    assert walk.mark() is None


@dataclass
class Container:
    """A container whose photos change: by name, an etag, a time, and how many of its readings fail first."""

    photos: dict[str, tuple[str, datetime, int]]
    url = "made-up://"
    prefix = ""
    concurrency = 2
    gone_after: int | None = None  # pages, after which the service does not answer

    def check(self) -> None: ...

    def hold(self, claim: LeaseClaim) -> None: ...

    def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
        names = sorted(name for name in self.photos if name.startswith(prefix))
        for start in range(0, len(names), 50):
            if self.gone_after is not None and start >= 50 * self.gone_after:
                raise ServiceUnreachable(service=self.url, reason="the cable was cut")
            yield [ref(name, *self.photos[name][:2]) for name in names[start : start + 50]]

    def read(self, ref: ImageRef) -> bytes:
        etag, when, fails = self.photos[ref.name]
        if fails:
            self.photos[ref.name] = (etag, when, fails - 1)
            raise ReadError("timeout", "It stopped arriving.")
        return b"x"


class Ready:
    info = INFO
    batch_size = 16

    def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
        return [(Prediction("parity", "even", 1.0, False, (1.0, 0.0)),) for _ in pixels]


PIXEL = np.zeros((1, 1, 3), np.uint8)


def night(container: Container, store: Store, job: Job, watch: Watch) -> None:
    hands = Hands(container, one_by_one(lambda data, size: (PIXEL, ImageFacts(1, 1, "jpeg", "0"))), (Ready(),), store)
    runs.run(job, hands, watch, command="test", settings="{}")


def any_time(chance: random.Random) -> datetime:
    ages = (timedelta(days=309), timedelta(days=300), timedelta(seconds=1), timedelta(), -timedelta(days=1))
    return now() - chance.choice(ages)


Photos = dict[str, tuple[str, datetime, int]]


def change(container: Container, deleted: Photos, before: Photos, chance: random.Random) -> None:
    """Something happens to a photo, at any time."""
    photos, etag = container.photos, str(chance.random())
    name = chance.choice(sorted(photos))
    match chance.choice(["new", "replaced", "put back", "deleted", "restored", "failing"]):
        case "new":
            photos[f"{chance.randrange(300):04d}-{etag}"] = ("1", any_time(chance), 0)
        case "replaced":
            before[name] = photos[name]
            photos[name] = (etag, any_time(chance), 0)
        case "put back" if before:
            name, was = before.popitem()
            photos[name] = was
        case "deleted":
            deleted[name] = photos.pop(name)
        case "restored" if deleted:
            back, was = deleted.popitem()
            photos[back] = was
        case "failing":
            photos[name] = (etag, any_time(chance), chance.choice([1, 2]))


PATIENT = Job(max_attempts=99, max_failure_rate=1.0)
JOBS = {
    "whole": PATIENT,
    "limited": replace(PATIENT, limit=2),
    "narrow": replace(PATIENT, prefixes=("00",), include=("*1",)),
    "again": replace(PATIENT, retry_failed=True, limit=1),
    "recent": replace(PATIENT, since=OLD + timedelta(days=100)),
    "cut": PATIENT,
    "stopped": PATIENT,
}


def contents(store: Store, what: str) -> dict[str, str]:
    return {row["name"]: row["etag"] for row in store.results(what, ResultFilter())}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_a_container_a_whole_run_leaves_nothing_out(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos come, go, are replaced, restored and moved with any time; runs are cut short, limited, narrowed."""
    monkeypatch.setattr(listing, "STRETCH", 16)
    monkeypatch.setattr(listing, "LONGEST", 64)
    chance = random.Random(seed)
    deleted: Photos = {}
    before: Photos = {}
    store = open_store("sqlite:///:memory:", create=True)
    container = Container({f"{n:04d}": ("1", OLD, 0) for n in range(300)})
    for _ in range(40):
        for _ in range(chance.choice([0, 1, 5])):
            change(container, deleted, before, chance)
        how = chance.choice(["whole", *JOBS])
        watch = Watch()
        container.gone_after = 3 if how == "cut" else None
        if how == "stopped":
            watch.stop.set()
        with suppress(ServiceUnreachable, Interrupted):
            night(container, store, JOBS[how], watch)
        if how == "whole":
            done, failing = contents(store, "predictions"), contents(store, "failures")
            assert [
                name for name, (tag, *_) in container.photos.items() if tag not in (done.get(name), failing.get(name))
            ] == []
    container.gone_after = None
    for _ in range(3):  # what fails at most twice is tried at each whole run
        night(container, store, PATIENT, Watch())
    done = contents(store, "predictions")
    assert [name for name, (tag, *_) in container.photos.items() if done.get(name) != tag] == []
    store.close()


def asked_in(container: Container, store: Store, job: Job = PATIENT) -> int:
    watch = Watch()
    night(container, store, job, watch)
    return watch.progress.asked


@pytest.fixture
def store() -> Iterator[Store]:
    made = open_store("sqlite:///:memory:", create=True)
    yield made
    made.close()


def test_a_photo_that_is_put_back_after_a_limited_run(store: Store) -> None:
    container = Container({f"{n:02d}": ("1", OLD, 0) for n in range(20)})
    assert asked_in(container, store) == 20
    container.photos["05"] = ("2", OLD, 0)
    night(container, store, replace(PATIENT, limit=1), Watch())
    container.photos["05"] = ("1", OLD, 0)
    assert asked_in(container, store) == 20
    assert contents(store, "predictions")["05"] == "1"


def test_a_failure_that_a_limited_run_leaves(store: Store) -> None:
    """Quarantined, tried again when asked for, and in a way that may pass: then it is the next run's."""
    container = Container({f"{n:02d}": ("1", OLD, int(n == 5)) for n in range(20)})
    night(container, store, replace(PATIENT, max_attempts=1), Watch())
    asked_in(container, store)
    assert asked_in(container, store) == 0
    container.photos["05"] = ("1", OLD, 1)
    night(container, store, replace(PATIENT, retry_failed=True, limit=1), Watch())
    asked_in(container, store)
    assert contents(store, "failures") == {}
    assert len(contents(store, "predictions")) == 20


def test_rows_that_are_deleted_while_a_run_is_on_are_new_again(store: Store) -> None:
    container = Container({f"{n:02d}": ("1", OLD, 0) for n in range(20)})
    asked_in(container, store)
    container.photos["99"] = ("1", OLD, 0)
    read, database = container.read, store._db._connection  # type: ignore[attr-defined]

    def deleting(ref: ImageRef) -> bytes:
        database.execute("DELETE FROM outcome WHERE image_seq = 3")
        return read(ref)

    container.read = deleting  # type: ignore[method-assign]
    asked_in(container, store)
    container.read = read  # type: ignore[method-assign]
    assert asked_in(container, store) == 21
    assert len(contents(store, "predictions")) == 21


def test_jobs_with_other_prefixes_leave_each_other_alone(store: Store) -> None:
    container = Container({f"{site}/{n:02d}": ("1", OLD, 0) for site in "ab" for n in range(20)})
    jobs = [replace(PATIENT, prefixes=(f"{site}/",)) for site in "ab"]
    assert [asked_in(container, store, job) for job in jobs] == [20, 20]
    container.photos["a/99"] = ("1", now() + timedelta(days=1), 0)
    assert [asked_in(container, store, job) for job in jobs] == [1, 0]
    assert asked_in(container, store, jobs[1]) == 0
    assert asked_in(container, store) == 41
    container.photos["b/99"] = ("1", now() + timedelta(days=1), 0)
    assert asked_in(container, store) == 2  # both are newer than the mark
    assert asked_in(container, store, jobs[0]) == 21  # its own mark went with what the whole run saved


def test_a_store_that_cannot_take_the_mark_loses_nothing(store: Store) -> None:
    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def leave_mark(self, key: str, mark: str, ticket: RunTicket) -> None:
            raise StoreError(url=store.url, reason="the disk is full")

    container = Container({f"{n:02d}": ("1", OLD, 0) for n in range(20)})
    assert asked_in(container, Refusing()) == 20  # type: ignore[arg-type]  # a Store by delegation
    assert store.runs(limit=1)[0]["status"] == "done"
    assert asked_in(container, store) == 20
