"""Results move between any two stores, and what arrives is what left."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import SAMPLE, Answer, Cosmos
from tests.test_stores import MODEL, TRUNCATED, begin, classified, failed, new, opened, ref, rows
from vehclass.errors import StoreError
from vehclass.records import ResultFilter, RunEnd
from vehclass.stores import Store
from vehclass.stores.copying import copy


@pytest.fixture(params=["file > cosmos", "cosmos > azure-sql", "azure-sql > file", "memory > memory"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    first, second = request.param.split(" > ")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with ExitStack() as stack:
        one = stack.enter_context(opened(first, request, tmp_path / "a"))
        other = stack.enter_context(opened(second, request, tmp_path / "b"))
        yield one, other


def fill(store: Store) -> None:
    """Two models, failures of both kinds, a photo that was replaced, attempts of several runs."""
    ticket = begin(store, "run-1")
    batch = [classified(f"{n:03d}", share=0.4 + n / 1000) for n in range(150)]
    store.save([*batch, failed("late"), failed("torn", TRUNCATED), classified("ä'\n🚗")], MODEL, ticket, max_attempts=3)
    store.end_run("run-1", RunEnd("done", 3, None, 153, 153))
    again = begin(store, "run-2")
    store.save([classified("000", "2"), failed("late")], MODEL, again, max_attempts=3)
    other = replace(MODEL, version="def456")
    store.save([classified("001")], other, begin(store, "run-3", other), max_attempts=3)


def everything(store: Store) -> list[str]:
    """All rows but for their order and for the facts of a photo that a store may keep in one place for all models."""
    return sorted(
        str({k: v for k, v in row.items() if k not in ("width", "height", "sha256")})
        for what in ("predictions", "probabilities", "failures")
        for row in store.results(what, ResultFilter())
    )


def test_what_arrives_is_what_left(two: tuple[Store, Store]) -> None:
    source, target = two
    fill(source)
    done = copy(source, target)
    assert (done.outcomes, done.written, done.there_before) == (154, 154, 0)
    assert done.verified
    assert everything(target) == everything(source)
    assert [run["run_id"] for run in target.runs(limit=9)] == [run["run_id"] for run in source.runs(limit=9)]
    assert target.runs(limit=9)[-1] == source.runs(limit=9)[-1]
    assert {model.key for model in target.models()} == {model.key for model in source.models()}
    assert new(target, ref("001"), ref("late"), ref("torn"), ref("000")) == ["late", "000"]
    again = copy(source, target)
    assert (again.written, again.there_before, again.checksum_to) == (0, 154, done.checksum_from)


def test_a_copy_that_was_stopped_goes_on(two: tuple[Store, Store]) -> None:
    source, target = two
    fill(source)
    page = next(iter(source.saved()))
    models = {model.version: model for model in source.models()}
    half = [one for one in page if one.model == MODEL.version][:40]
    target.restore(half, models[MODEL.version])
    done = copy(source, target)
    assert (done.written, done.there_before) == (114, 40)
    assert everything(target) == everything(source)


def test_a_later_result_stays(two: tuple[Store, Store]) -> None:
    source, target = two
    fill(source)
    copy(source, target)
    target.save([classified("005", "9")], MODEL, begin(target, "run-9"), max_attempts=3)
    done = copy(source, target)
    assert (done.newer_kept, done.written) == (1, 0)
    assert rows(target, "predictions", name="005", task="view")[0]["etag"] == "9"


def test_what_is_read_back_otherwise_is_told(two: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = two
    fill(source)
    true = target.restore

    def lossy(held: list[object], model: object) -> None:
        true(held[:-1], model)  # type: ignore[arg-type]

    monkeypatch.setattr(target, "restore", lossy)
    with pytest.raises(StoreError, match="read back otherwise"):
        copy(source, target)


def test_from_a_laptop_to_cosmos(vehclass: Callable[..., Answer], drawn: Path, cosmos: Cosmos, tmp_path: Path) -> None:
    vehclass("classify-batch", "-c", drawn, "-m", SAMPLE, "--store", "a.db")
    who = {"AZURE_COSMOS_KEY": cosmos.KEY}
    done = vehclass("store", "copy", "--from", "a.db", "--to", cosmos.url("moved"), "--json", **who)
    assert done.code == 0, done.err
    assert (done.json["copied"], done.json["verified"], done.json["runs"]) == (32, True, 1)
    assert done.json["checksum_from"] == done.json["checksum_to"]
    back = vehclass("store", "copy", "--from", cosmos.url("moved"), "--to", "b.db", **who)
    assert back.code == 0, back.err
    assert done.json["checksum_from"] in back.out
    shutil.copy(tmp_path / "a.db", tmp_path / "c.db")
    for store in ("b.db", "c.db"):
        nothing = vehclass("classify-batch", "-c", drawn, "-m", SAMPLE, "--store", store, "--json")
        assert nothing.json["new"] == 0
    assert vehclass("store", "copy", "--from", "a.db", "--to", "a.db").code == 2
    assert vehclass("store", "copy", "--from", "none.db", "--to", "d.db").code == 2
    assert not (tmp_path / "d.db").exists()
