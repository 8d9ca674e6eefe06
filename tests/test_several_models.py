"""Several models in one run: each photo is read once, decoded once a size, and each model keeps its own books."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SAMPLE, Answer
from tests.test_pipeline import FACTS, Names, Parity, names
from vehclass.batch import runs
from vehclass.batch.batches import one_by_one
from vehclass.batch.pipeline import Hands, Job, Watch
from vehclass.errors import LeaseHeld, LeaseLost, ReadError, StoreError
from vehclass.holders import place_of
from vehclass.imaging import Pixels
from vehclass.model.folder import open_model, write_model
from vehclass.records import ImageFacts, ImageRef, LeaseClaim, Outcome, RunTicket
from vehclass.stores import Store, open_store


class Model(Parity):
    """Parity under another name, perhaps with another input."""

    def __init__(self, name: str, side: int = 2) -> None:
        self.info = replace(Parity.info, name=name, version=name, input_size=(side, side))


@pytest.fixture
def store() -> Iterator[Store]:
    made = open_store("sqlite:///:memory:", create=True)
    yield made
    made.close()


class Decoder:
    def __init__(self) -> None:
        self.sizes: Counter[tuple[int, int]] = Counter()

    def __call__(self, data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        self.sizes[size] += 1
        return np.full((*size, 3), int(data) % 256, np.uint8), FACTS


def tell(
    source: Names, store: Store, *models: Model, decode: Any = None, watch: Watch | None = None, **job: Any
) -> list[runs.Finished]:
    hands = Hands(source, one_by_one(decode or Decoder()), models, store)
    return runs.run(Job(**{"lanes": 2, **job}), hands, watch or Watch(), command="test", settings="{}")


def test_a_photo_is_read_and_decoded_once_for_all(store: Store) -> None:
    source, decode = Names(200), Decoder()
    first, second = tell(source, store, Model("a"), Model("b"), decode=decode)
    assert (first.model, first.counts.classified, second.model, second.counts.classified) == ("a@a", 200, "b@b", 200)
    assert first.run_id != second.run_id
    assert sorted(source.reads) == sorted(set(source.reads))
    assert decode.sizes == {(2, 2): 200}
    assert names(store, model="a") == names(store, model="b") == {str(n) for n in range(200)}


def test_each_size_is_decoded_once(store: Store) -> None:
    source, decode = Names(30), Decoder()
    tell(source, store, Model("a"), Model("b", side=3), Model("c"), decode=decode)
    assert decode.sizes == {(2, 2): 30, (3, 3): 30}
    assert len(source.reads) == 30


def test_each_model_gets_what_is_new_to_it(store: Store) -> None:
    tell(Names(50), store, Model("a"))
    source, watch = Names(80), Watch()
    first, second = tell(source, store, Model("a"), Model("b"), watch=watch)
    assert (first.counts.classified, second.counts.classified) == (30, 80)
    assert (first.new, second.new, watch.progress.new) == (30, 80, 110)
    assert len(source.reads) == 80
    assert [one.counts.done for one in tell(Names(80), store, Model("a"), Model("b"))] == [0, 0]


def test_what_they_left_together_spares_the_store(store: Store) -> None:
    def asked(*models: str) -> int:
        watch = Watch()
        tell(Names(80), store, *map(Model, models), watch=watch)
        return watch.progress.asked

    assert asked("a", "b") == 80
    assert asked("a", "b") == 0
    assert asked("b", "a") == 0
    assert asked("a") == 0
    assert asked("a", "b", "c") == 80


def test_a_photo_that_fails_has_a_row_for_each(store: Store) -> None:
    class Torn(Names):
        def read(self, ref: ImageRef) -> bytes:
            if ref.name == "3":
                raise ReadError("vanished", "Gone.")
            return super().read(ref)

    ended = tell(Torn(10), store, Model("a"), Model("b", side=3))
    assert [one.counts.failed for one in ended] == [1, 1]
    assert names(store, "failures", model="a") == names(store, "failures", model="b") == {"3"}


def test_the_limit_counts_photos(store: Store) -> None:
    source = Names(50)
    ended = tell(source, store, Model("a"), Model("b"), limit=7)
    assert [one.counts.classified for one in ended] == [7, 7]
    assert len(set(source.reads)) == 7


def test_all_leases_or_none(store: Store) -> None:
    store.take_lease(LeaseClaim(f"{Names.url} b", "another", "there 1", 60))
    with pytest.raises(LeaseHeld):
        tell(Names(5), store, Model("a"), Model("b"))
    assert store.runs(limit=5) == []
    assert tell(Names(5), store, Model("a"))[0].counts.classified == 5


def test_a_lease_that_is_lost_ends_the_others_in_order(store: Store) -> None:
    class Losing:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def save(self, outcomes: list[Outcome], model: Any, ticket: RunTicket, *, max_attempts: int) -> None:
            if model.name == "b":
                store.free_lease(ticket)
                store.take_lease(LeaseClaim(ticket.lease_key, "thief", "there 1", 60))
            store.save(outcomes, model, ticket, max_attempts=max_attempts)

    with pytest.raises(LeaseLost):
        tell(Names(50), Losing(), Model("a"), Model("b"))  # type: ignore[arg-type]  # a Store by delegation
    status = {run["model"]: run["status"] for run in store.runs(limit=5)}
    assert status == {"a@a": "failed", "b@b": "running"}  # whoever took b's lease over ends its run
    assert names(store, model="b") == set()


def test_from_outside(vehclass: Callable[..., Answer], drawn: Path, tmp_path: Path) -> None:
    other = open_model(SAMPLE)
    draft = tmp_path / "draft"
    draft.mkdir()
    for name in other.files:
        (draft / name).write_bytes((SAMPLE / name).read_bytes())
    facts = {name: value for name, value in other.info.facts.items() if name not in ("tasks", "files", "version")}
    tasks = tuple(replace(task, threshold=0.5) for task in other.info.tasks)
    twin = write_model(draft, tmp_path / "twin", {**facts, "name": "twin"}, tasks)
    words = ("classify-batch", "-c", drawn, "-m", SAMPLE, "-m", twin.path, "--store", "r.db")
    done = vehclass(*words, "--json")
    assert done.code == 3, done.err
    assert [run["classified"] for run in done.json["runs"]] == [25, 25]
    found = [[(row["label"], row["images"]) for row in run["summary"]] for run in done.json["runs"]]
    assert found[0] == found[1]
    stages = done.json["profile"]["stages"]
    assert (stages["read"]["times"], stages["decode"]["times"], stages["forward"]["times"]) == (32, 32, 4)
    said = vehclass(*words, "--full")
    assert "Nothing is new" in said.out
    assert "twin@" in said.out
    twice = vehclass(*words, "-m", SAMPLE)
    assert twice.code == 2
    assert "one model twice" in twice.err


def held(store: Store, model: str) -> bool:
    try:
        ticket = store.take_lease(LeaseClaim(f"{Names.url} {model}", "probe", "there 1", 60))
    except LeaseHeld:
        return True
    store.free_lease(ticket)
    return False


class Failing:
    """A store in which something fails for one model."""

    def __init__(self, store: Store, what: str) -> None:
        self._store, self._what = store, what

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)

        def fails(*words: Any, **named: Any) -> Any:
            raise StoreError(url="here", reason="the disk is full")

        if name == self._what:
            self._what = ""  # once
            return fails
        return real


@pytest.mark.parametrize("what", ["start_run", "counts", "end_run"])
def test_no_lease_is_left_behind(what: str, store: Store) -> None:
    with pytest.raises(StoreError):
        tell(Names(5), Failing(store, what), Model("a"), Model("b"))  # type: ignore[arg-type]  # a Store by delegation
    assert not held(store, "a")
    assert not held(store, "b")
    status = {run["model"]: run["status"] for run in store.runs(limit=5)}
    assert what == "start_run" or status["b@b"] == "done"


def test_a_lease_at_the_source_that_is_lost_ends_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is given back all the same, in case it was a mistake; the store's lease still lets the end be recorded."""
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.05)
    told: list[str] = []

    class Held:
        def renew(self) -> None:
            told.append("renewed")
            if len(told) == 3:
                raise LeaseLost(holder="a later run")

        def free(self) -> None:
            told.append("freed")

    class Guarded(Names):
        def hold(self, claim: LeaseClaim) -> Held:
            assert claim.key == f"{self.url} a {place_of(store.url)}"
            return Held()

        def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
            time.sleep(0.5)
            yield from super().pages(prefix)

    with pytest.raises(LeaseLost):
        tell(Guarded(5), store, Model("a"))
    assert told == ["renewed"] * 3 + ["freed"]
    (run,) = store.runs(limit=1)
    assert (run["status"], run["exit_code"], run["classified"]) == ("failed", 4, 0)


def test_a_lease_that_is_lost_while_nothing_is_saved(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another run's that goes on, not somebody's Ctrl-C."""
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.05)

    class Slow(Names):
        def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
            store._db.execute("free_lease", lease_key=f"{self.url} a", fence=1, run_id=store.runs(limit=1)[0]["run_id"])  # type: ignore[attr-defined]
            store.take_lease(LeaseClaim(f"{self.url} a", "thief", "there 1", 60))
            time.sleep(0.5)
            yield from super().pages(prefix)

    with pytest.raises(LeaseLost):
        tell(Slow(0), store, Model("a"))
    assert store.runs(limit=1)[0]["status"] == "running"  # whoever took the lease over ends it
