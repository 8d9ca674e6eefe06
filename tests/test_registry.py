"""Models are handed around whole or not at all, in a folder as in a container, and one version is in production."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SAMPLE, VEHCLASS, Answer, Azurite, clean_environment, draw, free_port
from tests.faults import Fault, FaultProxy
from vehclass.azure_storage import patience
from vehclass.azure_storage.options import BlobOptions
from vehclass.cli import main
from vehclass.errors import (
    ModelNotFound,
    ModelNotInRegistry,
    ModelRefused,
    PromotedMeanwhile,
    PromotionRefused,
    RegistryAccessDenied,
    RegistryNotFound,
    ServiceUnreachable,
    UsageError,
)
from vehclass.model.folder import ModelFolder, open_model, write_model
from vehclass.records import Task
from vehclass.registry import cache, open_registry
from vehclass.registry.layout import Reference, read_reference
from vehclass.registry.promotion import Wish, before_the_present, objections, promote, read_production, roll_back
from vehclass.registry.pushing import push
from vehclass.registry.resolving import find, place_of

Vehclass = Callable[..., Answer]
Files = dict[str, bytes]
NETWORK: Files = {"model.keras": b"a network " * 1000, "openvino.bin": b"weights " * 3000}


def quiet(text: str) -> None:
    pass


def made(
    out: Path,
    *,
    name: str = "cars",
    files: Files | None = None,
    documents: Files | None = None,
    temperature: float = 1.0,
    accuracy: float | None = 0.9,
    test: str | None = "the same photos",
) -> ModelFolder:
    """A small model folder; nothing of a registry looks into a network."""
    draft = out.with_name(f"{out.name}.draft")
    draft.mkdir(parents=True)
    for file, data in (files or NETWORK).items():
        (draft / file).write_bytes(data)
    facts = {
        "name": name,
        "created_at": "2026-11-20T18:16:51.147Z",
        "input_size": [160, 160],
        "metrics": {"body": {"accuracy": accuracy}},
        "data": {"test_sha256": test} if test else {},
    }
    model = write_model(draft, out, facts, (Task("body", ("car", "van"), temperature),))
    for file, data in (documents or {}).items():
        (out / file).write_bytes(data)
    return model


def sample_with(out: Path, name: str, temperature: float) -> ModelFolder:
    """The sample model under a name of one's own, with another temperature, and so another version."""
    model = open_model(SAMPLE)
    draft = out.with_name(f"{out.name}.draft")
    draft.mkdir(parents=True)
    for file in model.files:
        shutil.copy(SAMPLE / file, draft / file)
    kept = {key: value for key, value in model.info.facts.items() if key not in ("files", "tasks", "version")}
    tasks = tuple(replace(task, temperature=temperature) for task in model.info.tasks)
    return write_model(draft, out, {**kept, "name": name}, tasks)


@dataclass
class Place:
    """A registry with the means to look at it, and to spoil it, from behind."""

    registry: Any
    where: str
    environment: dict[str, str]
    put: Callable[[str, bytes], object]
    get: Callable[[str], bytes]
    delete: Callable[[str], object]
    is_remote: bool


@pytest.fixture(params=["folder", "blob"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        root = tmp_path / "registry"
        root.mkdir()

        def put(key: str, data: bytes) -> None:
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(data)

        registry = open_registry(str(root), BlobOptions())
        return Place(
            registry,
            str(root),
            {},
            put,
            lambda key: (root / key).read_bytes(),
            lambda key: (root / key).unlink(),
            False,
        )
    azurite: Azurite = request.getfixturevalue("azurite")
    return in_container(azurite, azurite.port)


def in_container(azurite: Azurite, port: int) -> Place:
    name = f"models{time.monotonic_ns()}"
    client = azurite.container(name)
    where = f"http://127.0.0.1:{port}/{azurite.ACCOUNT}/{name}/shelf"
    return Place(
        open_registry(where, BlobOptions(account_key=azurite.KEY)),
        where,
        {"AZURE_STORAGE_KEY": azurite.KEY},
        lambda key, data: client.upload_blob(f"shelf/{key}", data, overwrite=True),
        lambda key: bytes(client.download_blob(f"shelf/{key}").readall()),
        lambda key: client.delete_blob(f"shelf/{key}"),
        True,
    )


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(azurite.port).running() as made_proxy:
        yield made_proxy


@pytest.fixture
def behind_proxy(azurite: Azurite, proxy: FaultProxy) -> Place:
    return in_container(azurite, proxy.port)


def bytes_of(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


class TestEveryRegistry:
    """The contract."""

    def test_empty(self, place: Place) -> None:
        assert place.registry.names() == []
        assert place.registry.versions("cars") == []
        assert place.registry.pointer("cars") is None
        with pytest.raises(ModelNotInRegistry, match="it is empty; put one there with `vehclass model push`"):
            find(place.registry, Reference("cars"))

    def test_what_is_pushed_comes_back_whole(self, place: Place, tmp_path: Path) -> None:
        documents = {
            "card.md": b"# A card",
            "report.html": b"<p>",
            "history.csv": b"epoch,loss",
            "odd.txt": b"not this",
        }
        model = made(tmp_path / "m", documents=documents)
        done = push(model, place.registry, quiet)
        assert sorted(done.files) == [
            "card.md",
            "history.csv",
            "model.json",
            "model.keras",
            "openvino.bin",
            "report.html",
        ]
        assert done.files[-1] == "model.json"
        version = model.info.version
        assert (place.registry.names(), place.registry.versions("cars")) == (["cars"], [version])

        found = cache.fetch(place.registry, "cars", version, tmp_path / "cache", quiet)
        wanted = {name: data for name, data in bytes_of(model.path).items() if name != "odd.txt"}
        assert bytes_of(found.path) == wanted
        assert found.path == (
            tmp_path / "cache" / "cars" / version if place.is_remote else Path(place.where, "cars", version)
        )
        copied = cache.download(place.registry, "cars", version, tmp_path / "copy", quiet)
        assert bytes_of(copied.path) == wanted

    def test_the_same_version_is_sent_once(self, place: Place, tmp_path: Path) -> None:
        model = made(tmp_path / "m", documents={"card.md": b"1"})
        push(model, place.registry, quiet)
        (model.path / "card.md").write_bytes(b"2")
        again = push(model, place.registry, quiet)
        assert (again.files, again.bytes) == ((), 0)
        assert place.get(f"cars/{model.info.version}/card.md") == b"1"

    def test_a_push_that_stops_leaves_no_version_and_goes_on(
        self, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = made(tmp_path / "m")
        upload = place.registry.upload

        def stops(name: str, version: str, file: Path, moved: Any) -> None:
            if file.name == "openvino.bin":
                raise KeyboardInterrupt
            upload(name, version, file, moved)

        monkeypatch.setattr(place.registry, "upload", stops)
        with pytest.raises(KeyboardInterrupt):
            push(model, place.registry, quiet)
        assert place.registry.versions("cars") == []
        monkeypatch.undo()
        assert push(model, place.registry, quiet).files == ("openvino.bin", "model.json")
        assert place.registry.versions("cars") == [model.info.version]

    def test_two_push_the_same_at_once(self, place: Place, tmp_path: Path) -> None:
        model = made(tmp_path / "m", files={"model.keras": os.urandom(9_000_000), "openvino.bin": b"w"})
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: push(model, place.registry, quiet), range(4)))
        assert cache.fetch(place.registry, "cars", model.info.version, tmp_path / "cache", quiet).info == model.info

    def test_a_push_mends_what_was_damaged(self, place: Place, tmp_path: Path) -> None:
        model = made(tmp_path / "m")
        push(model, place.registry, quiet)
        place.put(f"cars/{model.info.version}/openvino.bin", b"other")
        assert push(model, place.registry, quiet).files == ("openvino.bin",)
        cache.fetch(place.registry, "cars", model.info.version, tmp_path / "cache", quiet)

    def test_which_version_a_name_means(self, place: Place, tmp_path: Path) -> None:
        one = made(tmp_path / "1", temperature=1.0).info.version
        push(open_model(tmp_path / "1"), place.registry, quiet)
        assert find(place.registry, Reference("cars")) == one
        assert find(place.registry, read_reference(f"cars@{one[:4].upper()}")) == one
        two = made(tmp_path / "2", temperature=2.0).info.version
        push(open_model(tmp_path / "2"), place.registry, quiet)
        with pytest.raises(
            UsageError, match=f"(?s)has 2 versions.*none is in production.*{one}.*vehclass model promote"
        ):
            find(place.registry, Reference("cars"))
        promote(place.registry, "cars", two, Wish("me"))
        assert find(place.registry, Reference("cars")) == two
        with pytest.raises(ModelNotInRegistry, match=f"its versions there are .*{one}"):
            find(place.registry, Reference("cars", "00000"))
        with pytest.raises(ModelNotInRegistry, match="the models there are cars"):
            find(place.registry, Reference("lorries"))
        with pytest.raises(ModelNotInRegistry, match=f"its versions there are .*{one}"):
            cache.fetch(place.registry, "cars", "0" * 12, tmp_path / "cache", quiet)

    def test_a_beginning_that_two_versions_have(self, place: Place) -> None:
        for version in ("abcd00000000", "abcd11111111"):
            place.put(f"cars/{version}/model.json", b"{}")
        with pytest.raises(UsageError, match="may be any of abcd00000000, abcd11111111; write more"):
            find(place.registry, Reference("cars", "abcd"))
        assert find(place.registry, Reference("cars", "abcd1")) == "abcd11111111"

    def test_what_else_lies_there_is_no_model(self, place: Place) -> None:
        for key in ("cars/notes.txt", "cars/0123/model.json", "cars/0123456789ab/card.md", "photos/a.jpg", "readme"):
            place.put(key, b"{}")
        assert place.registry.names() == []
        assert place.registry.versions("cars") == []

    @pytest.mark.parametrize(
        ("how", "says"),
        [
            ("flipped", "openvino.bin is not the file that was trained"),
            ("cut", "openvino.bin is not the file that was trained"),
            ("longer", "openvino.bin is not the file that was trained"),
            ("gone", "openvino.bin is missing"),
            ("facts", "not what `vehclass train` writes"),
            ("other", "it is another model"),
            ("not json", "cannot be read"),
            ("temperature", "was changed after the model was made"),
        ],
    )
    def test_what_was_tampered_with_is_refused_and_not_kept(
        self, place: Place, tmp_path: Path, how: str, says: str
    ) -> None:
        model = made(tmp_path / "m")
        push(model, place.registry, quiet)
        key = f"cars/{model.info.version}"
        data, facts = place.get(f"{key}/openvino.bin"), json.loads(place.get(f"{key}/model.json"))
        match how:
            case "flipped":
                place.put(f"{key}/openvino.bin", data[:-1] + b"!")
            case "cut":
                place.put(f"{key}/openvino.bin", data[:-1])
            case "longer":
                place.put(f"{key}/openvino.bin", data + b"!")
            case "gone":
                place.delete(f"{key}/openvino.bin")
            case "facts":
                place.put(f"{key}/model.json", b"[]")
            case "other":
                other = made(tmp_path / "o", temperature=5.0)
                place.put(f"{key}/model.json", (other.path / "model.json").read_bytes())
            case "not json":
                place.put(f"{key}/model.json", b"{")
            case "temperature":
                facts["tasks"][0]["temperature"] = 9.0
                place.put(f"{key}/model.json", json.dumps(facts).encode())
        with pytest.raises(ModelRefused, match=says):
            cache.download(place.registry, "cars", model.info.version, tmp_path / "copy", quiet)
        with pytest.raises(ModelRefused):
            cache.fetch(place.registry, "cars", model.info.version, tmp_path / "cache", quiet)
        assert not (tmp_path / "copy").exists()
        assert not [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file() and entry.suffix != ".lock"]

    @pytest.mark.parametrize(
        "name", ["../../evil", "/etc/evil", "a/b", "..", ".hidden", "model.json", "x" * 200, "a\0b"]
    )
    def test_a_file_name_that_leads_elsewhere_is_refused_before_it_is_read(
        self, place: Place, tmp_path: Path, name: str
    ) -> None:
        model = made(tmp_path / "m")
        push(model, place.registry, quiet)
        key = f"cars/{model.info.version}"
        facts = json.loads(place.get(f"{key}/model.json"))
        facts["files"][name] = "00"
        place.put(f"{key}/model.json", json.dumps(facts).encode())
        with pytest.raises(ModelRefused, match="no plain name"):
            cache.download(place.registry, "cars", model.info.version, tmp_path / "deep" / "out", quiet)
        assert not (tmp_path / "deep").exists()
        assert not (tmp_path / "evil").exists()

    def test_a_version_that_claims_to_be_huge_is_refused(
        self, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = made(tmp_path / "m")
        push(model, place.registry, quiet)
        monkeypatch.setattr(cache, "MAX_MODEL_BYTES", 10_000)
        with pytest.raises(ModelRefused, match="at most 10,000 are downloaded"):
            cache.download(place.registry, "cars", model.info.version, tmp_path / "out", quiet)

    def test_a_name_that_no_registry_can_have(self, place: Place, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="my cars"):
            push(made(tmp_path / "m", name="my cars"), place.registry, quiet)
        with pytest.raises(UsageError, match="weights of all"):
            push(made(tmp_path / "n", files={"weights of all": b"x"}), place.registry, quiet)


class TestPromotion:
    """Who points production where, on what terms."""

    @pytest.fixture
    def versions(self, place: Place, tmp_path: Path) -> list[str]:
        """Three versions, each better than the one before on the same photos."""
        models = [made(tmp_path / str(n), temperature=1.0 + n, accuracy=0.9 + n / 100) for n in range(3)]
        for model in models:
            push(model, place.registry, quiet)
        return [model.info.version for model in models]

    def test_there_and_back(self, place: Place, versions: list[str]) -> None:
        registry = place.registry
        one, two, three = versions
        for version, why in ((one, "the first"), (two, "better"), (three, "better still")):
            assert promote(registry, "cars", version, Wish("anna@desk", why)).changed
        assert read_production(registry, "cars").version == three
        for wanted in (two, one):
            present, version = before_the_present(registry, "cars")
            assert version == wanted
            roll_back(registry, "cars", present, Wish("ben@desk", "vans are taken for cars"))
            assert read_production(registry, "cars").version == wanted
        with pytest.raises(UsageError, match="there is none before it"):
            before_the_present(registry, "cars")
        document = json.loads(place.get("cars/production.json"))
        assert (document["version"], document["promoted_by"], document["previous"]) == (one, "ben@desk", two)
        told = [(one["action"], one["version"], one["promoted_by"], one["why"]) for one in document["history"]]
        assert told == [
            ("rollback", one, "ben@desk", "vans are taken for cars"),
            ("rollback", two, "ben@desk", "vans are taken for cars"),
            ("promote", three, "anna@desk", "better still"),
            ("promote", two, "anna@desk", "better"),
            ("promote", one, "anna@desk", "the first"),
        ]

    def test_to_and_fro_is_undone_in_its_order(self, place: Place, versions: list[str]) -> None:
        one, two, _ = versions
        for version in (one, two, one):
            promote(place.registry, "cars", version, Wish("me", force=True))
        for wanted in (two, one):
            present, version = before_the_present(place.registry, "cars")
            roll_back(place.registry, "cars", present, Wish("me"))
            assert version == wanted

    def test_what_is_in_production_is_not_promoted_again(self, place: Place, versions: list[str]) -> None:
        promote(place.registry, "cars", versions[0], Wish("me"))
        before = place.get("cars/production.json")
        for wish in (Wish("you", "why not", min_accuracy=0.5), Wish("you", "why not", min_accuracy=0.99, force=True)):
            again = promote(place.registry, "cars", versions[0], wish)
            assert (again.changed, again.entry["promoted_by"]) == (False, "me")
        with pytest.raises(PromotionRefused, match="which is in production"):
            promote(place.registry, "cars", versions[0], Wish("you", "why not", min_accuracy=0.99))
        assert place.get("cars/production.json") == before

    def test_worse_on_the_same_photos_is_refused_but_by_force(self, place: Place, versions: list[str]) -> None:
        promote(place.registry, "cars", versions[1], Wish("me"))
        with pytest.raises(PromotionRefused, match=r"body is right on 90\.00%.*in production, has 91\.00%"):
            promote(place.registry, "cars", versions[0], Wish("me"))
        assert read_production(place.registry, "cars").version == versions[1]
        forced = promote(place.registry, "cars", versions[0], Wish("me", "the other one is slow", force=True))
        assert forced.entry["forced"]
        assert "90.00%" in json.loads(place.get("cars/production.json"))["history"][0]["overridden"][0]

    def test_a_damaged_version_in_production_is_replaced_by_force(self, place: Place, versions: list[str]) -> None:
        promote(place.registry, "cars", versions[1], Wish("me"))
        place.put(f"cars/{versions[1]}/model.json", b"{ torn")
        with pytest.raises(ModelRefused):
            promote(place.registry, "cars", versions[0], Wish("me"))
        promote(place.registry, "cars", versions[0], Wish("me", "it is damaged", force=True))
        assert read_production(place.registry, "cars").version == versions[0]

    def test_the_history_is_bounded(self, place: Place, versions: list[str]) -> None:
        promote(place.registry, "cars", versions[0], Wish("me"))
        document = json.loads(place.get("cars/production.json"))
        document["history"], document["before"] = document["history"] * 100, [versions[1]] * 100
        place.put("cars/production.json", json.dumps(document).encode())
        promote(place.registry, "cars", versions[2], Wish("me"))
        document = json.loads(place.get("cars/production.json"))
        assert (len(document["history"]), len(document["before"])) == (100, 100)

    @pytest.mark.parametrize(
        "what", [b"{", b"[]", b'{"version": "../../x", "before": [], "history": []}', b"\xff", b""]
    )
    def test_a_damaged_record_is_said_so(self, place: Place, versions: list[str], what: bytes) -> None:
        place.put("cars/production.json", what)
        for act in (
            lambda: find(place.registry, Reference("cars")),
            lambda: promote(place.registry, "cars", versions[0], Wish("me")),
        ):
            with pytest.raises(UsageError, match="production.json is not what `vehclass model promote` writes"):
                act()

    def test_of_two_at_once_one_is_told(
        self, place: Place, versions: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both have read the record before either writes it."""
        promote(place.registry, "cars", versions[0], Wish("me"))
        point, both_decided = place.registry.point, threading.Barrier(2)

        def together(name: str, content: bytes, etag: str | None) -> bool:
            both_decided.wait(10)
            return bool(point(name, content, etag))

        monkeypatch.setattr(place.registry, "point", together)

        def attempt(who: str, version: str) -> str:
            try:
                promote(place.registry, "cars", version, Wish(who))
            except PromotedMeanwhile as error:
                return str(error)
            return "done"

        with ThreadPoolExecutor(2) as pool:
            said = list(pool.map(attempt, ("anna", "ben"), versions[1:]))
        assert sorted(text == "done" for text in said) == [False, True], said
        winner = ("anna", "ben")[said.index("done")]
        assert next(text for text in said if text != "done").startswith(f"{winner} pointed production of cars at")
        production = read_production(place.registry, "cars")
        assert production.version == versions[1:][said.index("done")]
        assert [one["promoted_by"] for one in production.history] == [winner, "me"]

    @pytest.mark.parametrize("first", [True, False])
    def test_of_many_writers_one_wins(self, place: Place, versions: list[str], first: bool) -> None:
        if not first:
            promote(place.registry, "cars", versions[0], Wish("me"))
        etag = None if first else place.registry.pointer("cars")[1]
        start = threading.Barrier(12)

        def write(number: int) -> bool:
            start.wait(10)
            return bool(place.registry.point("cars", f"{number}".encode(), etag))

        with ThreadPoolExecutor(12) as pool:
            won = list(pool.map(write, range(12)))
        assert won.count(True) == 1
        assert place.get("cars/production.json") == f"{won.index(True)}".encode()

    def test_production_of_a_version_that_is_gone(self, place: Place, versions: list[str], tmp_path: Path) -> None:
        for version in versions[:2]:
            promote(place.registry, "cars", version, Wish("me"))
        place.delete(f"cars/{versions[1]}/model.json")
        with pytest.raises(ModelNotInRegistry) as caught:
            cache.open_from(place.registry, Reference("cars"), tmp_path / "cache", quiet)
        assert "vehclass model rollback cars" in caught.value.__notes__[0]
        present, version = before_the_present(place.registry, "cars")
        roll_back(place.registry, "cars", present, Wish("me"))
        assert cache.open_from(place.registry, Reference("cars"), tmp_path / "cache", quiet).info.version == version


def facts(test: str | None, **accuracy: float | None) -> dict[str, Any]:
    return {
        "version": "0123456789ab",
        "tasks": [{"name": task} for task in accuracy],
        "metrics": {task: {"accuracy": value} for task, value in accuracy.items()},
        "data": {"test_sha256": test} if test else {},
    }


@pytest.mark.parametrize(
    ("new", "old", "floor", "refused", "noted"),
    [
        (facts("t", a=0.9), None, None, [], []),
        (facts("t", a=0.9), None, 0.9, [], []),
        (facts("t", a=0.95, b=0.89), None, 0.9, ["b is right on 89.00%"], []),
        (facts("t", a=None), None, 0.9, ["a has no accuracy"], []),
        ({"tasks": [{"name": "a"}]}, None, 0.9, ["a has no accuracy"], []),
        (facts("t", a=0.9), facts("t", a=0.9), None, [], []),
        (facts("t", a=0.9, b=0.8), facts("t", a=0.8, b=0.9), None, ["b is right on 80.00%"], []),
        (facts("t", a=None), facts("t", a=0.8), None, ["a is not measured"], []),
        (facts("t", b=0.5), facts("t", a=0.8), None, [], ["no longer answers a"]),
        (facts("u", a=0.1), facts("t", a=0.9), None, [], ["tested on other photos"]),
        (facts(None, a=0.1), facts("t", a=0.9), None, [], ["not recorded"]),
        (facts("t", a=0.1), facts(None, a=0.9), None, [], ["not recorded"]),
        (facts(None, a=0.1), facts(None, a=0.9), 0.5, ["a is right on 10.00%"], ["not recorded"]),
        ({"metrics": [], "data": 1, "tasks": []}, {"metrics": None}, None, [], ["not recorded"]),
    ],
)
def test_what_speaks_against_a_model(
    new: dict[str, Any], old: dict[str, Any] | None, floor: float | None, refused: list[str], noted: list[str]
) -> None:
    refusals, notes = objections(new, old, floor)
    assert len(refusals) == len(refused)
    assert all(wanted in said for wanted, said in zip(refused, refusals, strict=True)), refusals
    assert len(notes) == len(noted)
    assert all(wanted in said for wanted, said in zip(noted, notes, strict=True)), notes


class TestDownloads:
    """A container's models, once on this machine, and whole."""

    @pytest.fixture
    def model(self, behind_proxy: Place, tmp_path: Path) -> ModelFolder:
        model = made(tmp_path / "m", files={"model.keras": os.urandom(12_000_000), "openvino.bin": b"w" * 1000})
        push(model, behind_proxy.registry, quiet)
        return model

    def test_a_second_use_reads_nothing_of_the_container(
        self, behind_proxy: Place, proxy: FaultProxy, model: ModelFolder, tmp_path: Path
    ) -> None:
        exact = Reference("cars", model.info.version)
        first = cache.open_from(behind_proxy.registry, exact, tmp_path / "cache", quiet)
        seen = len(proxy.requests)
        assert cache.open_from(behind_proxy.registry, exact, tmp_path / "cache", quiet) == first
        assert len(proxy.requests) == seen

    @pytest.mark.parametrize("how", ["flipped", "gone", "empty"])
    def test_a_damaged_cache_is_noticed_and_renewed(
        self, behind_proxy: Place, proxy: FaultProxy, model: ModelFolder, tmp_path: Path, how: str
    ) -> None:
        exact = Reference("cars", model.info.version)
        path = cache.open_from(behind_proxy.registry, exact, tmp_path / "cache", quiet).path
        if how == "empty":
            shutil.rmtree(path)
            path.mkdir()
        elif how == "gone":
            (path / "openvino.bin").unlink()
        else:
            (path / "openvino.bin").write_bytes(b"v" * 1000)
        assert cache.open_from(behind_proxy.registry, exact, tmp_path / "cache", quiet).path == path
        assert bytes_of(path) == bytes_of(model.path)

    def test_a_killed_download_leaves_no_half_model(
        self, behind_proxy: Place, proxy: FaultProxy, model: ModelFolder, tmp_path: Path, vehclass: Vehclass
    ) -> None:
        slow = Fault(delay=0.7)
        proxy.rule = lambda method, path: slow if "model.keras" in path else None
        kept = tmp_path / "cache" / "cars"
        environment = {**behind_proxy.environment, "VEHCLASS_CACHE": str(tmp_path / "cache")}
        words = ["model", "pull", "cars", "--registry", behind_proxy.where]
        process = subprocess.Popen([*VEHCLASS, *words], env=clean_environment(**environment), cwd=tmp_path)
        until(lambda: [file for file in kept.glob(".*.part/model.keras") if file.stat().st_size > 0])
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        assert len(list(kept.glob("*.part"))) == 1
        assert not (kept / model.info.version).exists()

        proxy.rule = lambda method, path: None
        again = vehclass(*words, "--json", **environment)
        assert again.code == 0, again.err
        assert bytes_of(Path(again.json["path"])) == bytes_of(model.path)
        assert [entry.name for entry in kept.iterdir() if entry.suffix != ".lock"] == [model.info.version]

    def test_two_processes_at_once_download_once(
        self, behind_proxy: Place, proxy: FaultProxy, model: ModelFolder, tmp_path: Path
    ) -> None:
        proxy.requests.clear()
        proxy.rule = lambda method, path: Fault(delay=0.3) if "model.keras" in path else None
        environment = {**behind_proxy.environment, "XDG_CACHE_HOME": str(tmp_path / "xdg")}
        words = [*VEHCLASS, "model", "pull", "cars", "--registry", behind_proxy.where, "--json"]
        both = [
            subprocess.Popen(
                words, env=clean_environment(**environment), cwd=tmp_path, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        said = [process.communicate(timeout=60)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0]
        path = tmp_path / "xdg" / "vehclass" / "models" / "cars" / model.info.version
        assert {json.loads(text)["path"] for text in said} == {str(path)}
        assert bytes_of(path) == bytes_of(model.path)
        assert len([path for method, path in proxy.requests if method == "GET" and "model.keras" in path]) == 3

    def test_a_cache_that_cannot_be_written(self, behind_proxy: Place, model: ModelFolder, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="VEHCLASS_CACHE"):
            cache.open_from(behind_proxy.registry, Reference("cars"), tmp_path / "file", quiet)

    def test_without_the_container_only_what_is_named_whole_is_found(
        self, behind_proxy: Place, model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = cache.open_from(behind_proxy.registry, Reference("cars"), tmp_path / "cache", quiet)
        monkeypatch.setattr(patience, "SILENCE_BUDGET", 0.1)
        gone = open_registry(f"http://127.0.0.1:{free_port()}/account/models", BlobOptions(account_key="a2V5"))
        exact = Reference("cars", model.info.version)
        assert cache.open_from(gone, exact, tmp_path / "cache", quiet) == found
        for vague in (Reference("cars"), Reference("cars", model.info.version[:4])):
            with pytest.raises(ServiceUnreachable) as caught:
                cache.open_from(gone, vague, tmp_path / "cache", quiet)
            assert f"{exact} is in the cache" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "fault",
    [Fault(status=503, error_code="ServerBusy"), Fault(drop_reply=True), Fault(cut_after=3)],
    ids=["503", "dropped", "cut"],
)
def test_what_happens_once_is_repeated(
    behind_proxy: Place, proxy: FaultProxy, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request fails the first time it is made; also when only its answer is lost, nobody is told of a rival."""
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: 0.01)
    seen: set[tuple[str, str]] = set()

    def once(method: str, path: str) -> Fault | None:
        if (method, path) in seen:
            return None
        seen.add((method, path))
        return fault

    proxy.rule = once
    models = [
        made(tmp_path / "1", files={"model.keras": os.urandom(5_000_000)}),
        made(tmp_path / "2", files={"model.keras": os.urandom(100)}, accuracy=0.95),
    ]
    if fault.cut_after is not None:  # no answer to a write is long enough to be cut, and the SDK waits a second a cut
        models.pop()
    for model in models:
        push(model, behind_proxy.registry, quiet)
        seen.clear()
        promote(behind_proxy.registry, "cars", model.info.version, Wish("me"))
        seen.clear()
        found = cache.open_from(behind_proxy.registry, Reference("cars"), tmp_path / "cache", quiet)
        assert bytes_of(found.path) == bytes_of(model.path)
    assert len(read_production(behind_proxy.registry, "cars").history) == len(models)


def test_a_container_that_refuses_or_is_not_there(azurite: Azurite) -> None:
    base = f"http://127.0.0.1:{azurite.port}/{azurite.ACCOUNT}"
    missing = open_registry(f"{base}/missing", BlobOptions(account_key=azurite.KEY))
    refusing = open_registry(f"{base}/any", BlobOptions(account_key="d3Jvbmc="))
    silent = open_registry(f"http://127.0.0.1:{free_port()}/a/any", BlobOptions(account_key="d3Jvbmc="))
    for act in ("names", "pointer", "versions"):
        words = () if act == "names" else ("cars",)
        with pytest.raises(RegistryNotFound, match="no such container"):
            getattr(missing, act)(*words)
        with pytest.raises(RegistryAccessDenied, match="Storage Blob Data Contributor"):
            getattr(refusing, act)(*words)
    with pytest.raises(ServiceUnreachable):
        silent.pointer("cars")


def test_az_urls(azurite: Azurite, tmp_path: Path) -> None:
    """A connection string serves its own account; another account's container is that account's."""
    azurite.container("azmodels")
    options = BlobOptions(connection_string=azurite.connection_string)
    registry = open_registry(f"az://{azurite.ACCOUNT}/azmodels/a/b/", options)
    push(made(tmp_path / "m"), registry, quiet)
    assert registry.names() == ["cars"]
    assert registry.url == f"http://127.0.0.1:{azurite.port}/{azurite.ACCOUNT}/azmodels/a/b"
    assert open_registry("az://another/models", options).url == "https://another.blob.core.windows.net/models"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cars", ("home", Reference("cars"))),
        ("cars@0123456789AB", ("home", Reference("cars", "0123456789ab"))),
        ("az://acct/models/cars", ("az://acct/models", Reference("cars"))),
        ("az://acct/models/a/b/cars@0123/", ("az://acct/models/a/b", Reference("cars", "0123"))),
        ("https://h/models/cars%400123?sv=1&sig=a%2Fb", ("https://h/models?sv=1&sig=a%2Fb", Reference("cars", "0123"))),
        ("file:///srv/models/cars", ("file:///srv/models", Reference("cars"))),
        ("home/cars@0123", ("home", Reference("cars", "0123"))),
        ("plain", Path("plain")),
        ("home/nothing", Path("home/nothing")),
        ("no/where@0123", Path("no/where@0123")),
        ("not a name", UsageError),
        ("cars@", UsageError),
        ("cars@xyz", UsageError),
        ("cars@012", UsageError),
        ("@0123", UsageError),
        ("az://", UsageError),
        ("az://cars", UsageError),
        ("az://acct/models/cars@", UsageError),
        ("n" * 300, ModelNotFound),
    ],
)
def test_what_a_model_may_be_named_by(text: str, wanted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain").mkdir()
    Path("home").mkdir()
    if isinstance(wanted, type):
        with pytest.raises(wanted):
            place_of(text, "home")
    else:
        assert place_of(text, "home") == wanted


def test_a_folder_goes_first_and_a_folder_of_versions_is_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = open_registry("home", BlobOptions())
    push(made(tmp_path / "m"), registry, quiet)
    assert place_of("home/cars", "elsewhere") == (str(tmp_path / "home"), Reference("cars"))
    assert place_of("home", "elsewhere") == Path("home")
    shutil.copytree("m", "cars")
    assert place_of("cars", "home") == Path("cars")
    with pytest.raises(ModelNotFound, match="no registry elsewhere"):
        place_of("lorries", "elsewhere")


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_folder_as_train_writes_it_is_a_version_and_promoted_as_a_copy(vehclass: Vehclass, tmp_path: Path) -> None:
    model = made(tmp_path / "models" / "cars")
    key = f"cars@{model.info.version}"
    listed = vehclass("model", "list", "--json").json["models"]
    assert [(row["name"], row["version"], row["accuracy"]) for row in listed] == [
        ("cars", model.info.version, {"body": 0.9})
    ]
    assert listed[0]["bytes"] == sum(len(data) for data in bytes_of(model.path).values())
    pulled = vehclass("model", "pull", "cars", "--out", "copy", "--json")
    assert pulled.code == 0, pulled.err
    assert bytes_of(tmp_path / "copy") == bytes_of(model.path)
    assert vehclass("model", "promote", key).code == 0
    # A later training's model, in the same place.
    other = made(tmp_path / "other", temperature=3.0)
    for file in ("model.json", *other.files):
        shutil.copy(other.path / file, model.path / file)
    registry = open_registry(str(tmp_path / "models"), BlobOptions())
    assert registry.versions("cars") == sorted([model.info.version, other.info.version])
    assert cache.open_from(registry, Reference("cars"), tmp_path, quiet).info == model.info


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Vehclass]:
    """Runs the command in this process: a door as `vehclass` has it, without the second that Python takes to start."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, stream), "reconfigure", lambda **more: None, raising=False)

    def run(*words: str, **environment: str) -> Answer:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["vehclass", *words])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Answer(int(left.value.code or 0), said.out, said.err)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_commands(place: Place, inside: Vehclass, tmp_path: Path) -> None:
    """What a person does with three versions, and what is said of it."""
    one = made(tmp_path / "one", documents={"card.md": b"#"}).info.version
    two = made(tmp_path / "two", temperature=2.0, accuracy=0.8).info.version
    three = made(tmp_path / "three", temperature=3.0, accuracy=0.99).info.version
    here = {**place.environment, "VEHCLASS_MODELS": place.where, "VEHCLASS_CACHE": str(tmp_path / "cache")}

    def run(*words: str, code: int = 0) -> Answer:
        answer = inside("model", *words, **here)
        assert answer.code == code, answer.out + answer.err
        return answer

    assert "nothing" not in run("push", "one").out
    assert "nothing was sent" in run("push", "one").out
    run("push", "two")
    assert sorted(run("push", "three", "--json").json["uploaded"]) == ["model.json", "model.keras", "openvino.bin"]
    (tmp_path / "two" / "openvino.bin").write_bytes(b"x")
    assert "openvino.bin is not the file that was trained" in run("push", "two", code=2).err

    assert f"there are: {', '.join(sorted([one, two, three]))}" in run("promote", "cars", code=2).err
    assert "none is in production" in run("pull", "cars", code=2).err
    assert "90.00%" in run("promote", f"cars@{one}", "--min-accuracy", "0.95", code=1).err
    assert "in production now" in run("promote", f"cars@{one[:6]}", "--min-accuracy", "0.9", "--why", "winter").out
    refused = run("promote", f"cars@{two}", "--json", code=1)
    assert refused.json["error"] == "PromotionRefused"
    assert "Forced: body is right on 80.00%" in run("promote", f"cars@{two}", "--force").err
    place.put(f"cars/{three}/openvino.bin", b"x")
    assert "openvino.bin is not the file" in run("promote", f"cars@{three}", code=2).err
    assert run("push", "three", "--json").json["uploaded"] == ["openvino.bin"]
    done = run("promote", f"cars@{three}", "--json").json
    assert (done["changed"], done["previous"], done["forced"]) == (True, two, False)
    assert "in production already" in run("promote", f"cars@{three}").out
    assert run("pull", "cars", "--json").json["model"] == f"cars@{three}"
    rolled = run("rollback", "cars", "--why", "slow", "--json").json
    assert (rolled["version"], rolled["previous"], rolled["why"]) == (two, three, "slow")
    assert f"cars@{one} is in production now, instead of {two}" in run("rollback", "cars").out
    assert "none before it" in run("rollback", "cars", code=2).err

    rows = run("list", "--json").json["models"]
    assert next((row["version"], row["production"]) for row in rows) == (one, True)
    assert {row["version"]: row["accuracy"]["body"] for row in rows} == {one: 0.9, two: 0.8, three: 0.99}
    shown = run("list").out
    assert all(text in shown for text in ("production", "body 99.0%", "2026-11-20", two))
    history = run("history", "cars", "--json").json
    assert [one["action"] for one in history["history"]] == ["rollback", "rollback", *["promote"] * 3]
    assert all("@" in one["promoted_by"] for one in history["history"])
    shown = run("history", "cars").out
    assert all(text in shown for text in ("rolled back", "promoted by force", "winter", "slow"))

    place.put(f"cars/{two}/model.json", b"{}")
    assert "not what `vehclass train`" in run("list").out.replace("\n", " ")
    assert "is there already" in run("pull", "cars", "--out", "one", code=2).err
    for words in (("pull", "lorries"), ("history", "lorries"), ("rollback", "lorries"), ("promote", "lorries@0123")):
        assert "the models there are cars" in run(*words, code=2).err
    assert "takes a name alone" in run("history", f"cars@{one}", code=2).err


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return (
        draw(tmp_path_factory.mktemp("uploads") / "drawn", "--count", "6", "--seed", "3", "--size", "320x240")
        / "photos"
    )


def test_the_next_run_takes_what_was_promoted(place: Place, vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
    """From outside: two versions by name, one after the other, their rows apart in one store; and back again."""
    old = sample_with(tmp_path / "old", "fleet", 1.0).info.key
    new = sample_with(tmp_path / "new", "fleet", 3.0).info.key
    here = {**place.environment, "VEHCLASS_MODELS": place.where, "VEHCLASS_CACHE": str(tmp_path / "cache")}
    for name in ("old", "new"):
        push(open_model(tmp_path / name), place.registry, quiet)

    def night(model: str = "fleet") -> Any:
        answer = vehclass("classify-batch", "-c", uploads, "-m", model, "--store", "r.db", "--json", **here)
        assert answer.code == 0, answer.err
        return answer.json["model"], answer.json["classified"]

    def rows() -> dict[str, int]:
        with sqlite3.connect(tmp_path / "r.db") as store:
            found = store.execute("SELECT model, count(*) FROM image_prediction GROUP BY model").fetchall()
        store.close()
        return dict(found)

    promote(place.registry, "fleet", old.partition("@")[2], Wish("me"))
    assert night() == (old, 6)
    promote(place.registry, "fleet", new.partition("@")[2], Wish("me"))
    assert night() == (new, 6)
    assert rows() == {old: 18, new: 18}
    present, _ = before_the_present(place.registry, "fleet")
    roll_back(place.registry, "fleet", present, Wish("me"))
    assert night() == (old, 0)
    assert night(f"{place.where}/fleet@{new.partition('@')[2][:5]}") == (new, 0)
    assert rows() == {old: 18, new: 18}


def test_a_sas_in_a_models_url_is_neither_shown_nor_stored(
    azurite: Azurite, vehclass: Vehclass, uploads: Path, tmp_path: Path
) -> None:
    from datetime import UTC, datetime, timedelta

    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    place = in_container(azurite, azurite.port)
    push(sample_with(tmp_path / "m", "fleet", 1.0), place.registry, quiet)
    container = place.where.split("/")[-2]
    sas = generate_container_sas(
        azurite.ACCOUNT,
        container,
        azurite.KEY,
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    secret = dict(part.split("=") for part in sas.split("&"))["sig"]
    here = {"VEHCLASS_CACHE": str(tmp_path / "cache"), "VEHCLASS_MODELS": f"{place.where}?{sas}"}
    by_url = vehclass("classify-batch", "-c", uploads, "-m", f"{place.where}/fleet?{sas}", "--store", "r.db", **here)
    by_name = vehclass("doctor", "-m", "fleet", **here)
    denied = vehclass("model", "promote", f"fleet@{open_model(tmp_path / 'm').info.version}", "--verbose", **here)
    assert (by_url.code, by_name.code, denied.code) == (0, 0, 2), by_url.err + by_name.err
    assert "Storage Blob Data Contributor" in denied.err
    said = "".join(answer.out + answer.err for answer in (by_url, by_name, denied))
    for form in (secret, secret.replace("%2F", "/").replace("%3D", "=").replace("%2B", "+")):
        assert form not in said
        assert form.encode() not in (tmp_path / "r.db").read_bytes()
