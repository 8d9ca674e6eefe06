"""Labelled photos become a model folder; data that cannot be learnt from is refused in a sentence."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Answer, draw
from tests.test_secrets import CANARY, canaries
from vehclass.errors import DataError
from vehclass.model.folder import open_model
from vehclass.training.calibrate import nll, temperature, threshold
from vehclass.training.dataset import Sample, load, read_catalogue, split_rows, typical_side


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (48, 48)) -> bytes:
    rng = np.random.default_rng(sum(colour))
    pixels = np.clip(np.array(colour) + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def folders(root: Path, counts: dict[str, int]) -> Path:
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            red = 200 if label.endswith("red") else 40
            (root / label / f"{number}.jpg").write_bytes(jpeg((red, 40 + number % 9, 240 - red)))
    return root


class TestData:
    """What is learnt from."""

    def test_a_folder_per_label(self, tmp_path: Path) -> None:
        folders(tmp_path, {"red": 6, "blue": 4, ".ipynb_checkpoints": 3})
        (tmp_path / "red" / ".DS_Store").write_bytes(b"x")
        (tmp_path / "notes.txt").write_text("beside the labels")
        catalogue = read_catalogue(tmp_path, "colour")
        (task,) = catalogue.tasks
        assert (task.name, task.labels) == ("colour", ("blue", "red"))
        assert catalogue.label_counts(task) == {"red": 6, "blue": 4}

    def test_folders_that_name_the_split(self, tmp_path: Path) -> None:
        for split in ("train", "val", "test"):
            folders(tmp_path / split, {"red": 3, "blue": 3})
        catalogue = read_catalogue(tmp_path)
        dataset = load(catalogue, (32, 32), 0)
        assert {split: len(rows) for split, rows in dataset.rows.items()} == {"train": 6, "val": 6, "test": 6}
        for split, rows in dataset.rows.items():
            assert {dataset.paths[row].parent.parent.name for row in rows} == {split}

    def test_a_manifest_with_gaps(self, tmp_path: Path) -> None:
        for number in range(4):
            (tmp_path / f"{number}.jpg").write_bytes(jpeg((90, 90, 90)))
        (tmp_path / "manifest.csv").write_text(
            "path,view,body\n0.jpg,exterior,van\n1.jpg,interior,\n2.jpg,exterior,suv\n3.jpg,interior,\n"
        )
        catalogue = read_catalogue(tmp_path)
        assert [(task.name, task.labels) for task in catalogue.tasks] == [
            ("view", ("exterior", "interior")),
            ("body", ("suv", "van")),
        ]
        assert catalogue.samples[1].labels == {"view": "interior"}

    @pytest.mark.parametrize(
        ("counts", "says"),
        [
            ({}, "no folder per label"),
            ({"red": 5}, "has 1 label"),
            ({"red": 5, "blue": 0}, "'blue' is empty"),
            ({"red": 5, "Red": 5}, "differ only in case"),
            ({"red": 5, "red ": 5}, "differ only in case or space"),
            ({"train": 0, "extra": 3}, "neither val/ nor test/"),
        ],
    )
    def test_folders_that_cannot_be_used(self, tmp_path: Path, counts: dict[str, int], says: str) -> None:
        with pytest.raises(DataError, match=says):
            read_catalogue(folders(tmp_path, counts))

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("file,view\n0.jpg,a\n", "needs a column `path`"),
            ("path\n0.jpg\n", "one column a task"),
            ("path,view\n0.jpg,a\n9.jpg,b\n", "line 3 names 9.jpg, which does not exist"),
            ("path,view\n../../etc/passwd,a\n", "not below its folder"),
            ("path,view\n,a\n", "names no file"),
            ("path,view\n0.jpg,\n", "has no label"),
        ],
    )
    def test_manifests_that_cannot_be_used(self, tmp_path: Path, text: str, says: str) -> None:
        (tmp_path / "0.jpg").write_bytes(jpeg((9, 9, 9)))
        (tmp_path / "manifest.csv").write_text(text)
        with pytest.raises(DataError, match=says):
            read_catalogue(tmp_path)

    def test_files_that_do_not_decode_are_left_out_and_named(self, tmp_path: Path) -> None:
        folders(tmp_path, {"red": 20, "blue": 20})
        (tmp_path / "red" / "3.jpg").write_bytes(b"no photo")
        dataset = load(read_catalogue(tmp_path), (32, 32), 0)
        assert [(file.path.name, file.code) for file in dataset.rejected] == [("3.jpg", "not_an_image")]
        assert sum(len(rows) for rows in dataset.rows.values()) == 39

    def test_a_label_that_loses_all_its_photos(self, tmp_path: Path) -> None:
        folders(tmp_path, {"red": 20, "blue": 1})
        (tmp_path / "blue" / "0.jpg").write_bytes(b"no photo")
        with pytest.raises(DataError, match="no photo of the label 'blue' can be decoded"):
            load(read_catalogue(tmp_path), (32, 32), 0)

    def test_too_few(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="too few to be split"):
            load(read_catalogue(folders(tmp_path, {"red": 1, "blue": 1})), (32, 32), 0)

    def test_the_split_keeps_the_mix_and_repeats(self) -> None:
        samples = [Sample(Path(str(n)), {"a": "x" if n % 10 else "rare", "b": str(n % 3)}) for n in range(600)]
        rows = split_rows(samples, np.arange(600), seed=4)
        assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(600))
        assert [len(rows[split]) for split in ("train", "val", "test")] == pytest.approx([420, 90, 90], abs=1)
        for part in rows.values():
            share = np.mean([samples[row].labels["a"] == "rare" for row in part])
            assert 0.07 < share < 0.13
        again = split_rows(samples, np.arange(600), seed=4)
        assert all((rows[split] == again[split]).all() for split in rows)
        other = split_rows(samples, np.arange(600), seed=5)
        assert (rows["val"] != other["val"]).any()

    def test_the_input_follows_the_photos(self, tmp_path: Path) -> None:
        assert typical_side(read_catalogue(folders(tmp_path / "small", {"red": 3, "blue": 3})), 160) == 48
        assert typical_side(read_catalogue(folders(tmp_path / "tiny", {"red": 3, "blue": 3})), 32) == 32


class TestCalibration:
    """Probabilities that mean what they say."""

    def test_the_temperature_undoes_overconfidence(self) -> None:
        rng = np.random.default_rng(0)
        honest = rng.normal(0, 1.5, (20_000, 4)).astype(np.float32)
        shares = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
        targets = np.array([rng.choice(4, p=row) for row in shares], np.int32)
        assert temperature(honest, targets) == pytest.approx(1, abs=0.05)
        assert temperature(honest * 3, targets) == pytest.approx(3, abs=0.15)
        assert nll(honest * 3, targets, 3.0) < nll(honest * 3, targets, 1.0)

    def test_the_threshold_keeps_the_precision(self) -> None:
        tops = np.linspace(0.5, 1, 1000)
        shares = np.stack([tops, 1 - tops], axis=1)
        targets = np.where(np.arange(1000) < 300, np.arange(1000) % 2, 0).astype(np.int32)  # half wrong below 0.65
        at = threshold(shares, targets, 0.95)
        sure = tops >= at
        assert 0.5 < at < 0.65
        assert (targets[sure] == 0).mean() >= 0.95
        assert threshold(shares, np.ones(1000, np.int32), 0.95) == 1.0


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 drawn photos, two of them broken and one cell empty."""
    folder = draw(tmp_path_factory.mktemp("labelled"), "--count", "120", "--seed", "3", "--size", "200x150")
    (folder / "photos" / "000004.jpg").write_bytes(b"no photo")
    return folder


@pytest.mark.timeout(240)
def test_train_from_outside(labelled: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    """The folder that training writes is one that classify-batch takes, and a changed one is not."""
    words = ["train", labelled, "--out", "models/mine", "--epochs", "2", "--input-size", "48"]
    done = vehclass(*words, timeout=200, **canaries())  # secrets in the environment, which training has no use for
    assert done.code == 0, done.err
    kept = [path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()]
    assert not any(CANARY.encode() in text for text in (*kept, (done.out + done.err).encode()))
    assert "000004.jpg: The bytes are not those of an image." in done.err
    assert "only 17 photos to check with" in done.err
    assert "epoch   2/2" in done.err
    assert "right: " in done.err
    assert "On the test split" in done.out

    folder = open_model(tmp_path / "models/mine")
    assert [task.name for task in folder.info.tasks] == ["view", "condition", "body"]
    assert set(folder.files) == {"model.keras", "openvino.xml", "openvino.bin"}
    facts = json.loads((tmp_path / "models/mine/model.json").read_text())
    assert facts["exports"]["openvino"]["labels_changed"] == 0
    assert facts["exports"]["openvino"]["greatest_difference"] < 1e-3
    assert facts["data"]["photos"] == {"train": 85, "val": 17, "test": 17}
    confusion = np.array(facts["metrics"]["condition"]["confusion"])
    assert confusion.sum() == facts["metrics"]["condition"]["support"] == 17
    assert confusion.trace() / 17 == pytest.approx(facts["metrics"]["condition"]["accuracy"], abs=1e-3)
    assert len(facts["history"]) == 2
    assert not list((tmp_path / "models").glob(".*")), "a draft was left behind"
    assert str(tmp_path) not in json.dumps(facts)

    assert "exists" in vehclass(*words).err
    answer = vehclass("classify-batch", "-c", labelled / "photos", "-m", "models/mine", "--json")
    assert (answer.code, answer.json["classified"]) == (3, 119)
    shown = vehclass("model", "show", "models/mine")
    assert "every file is as it was made" in shown.out

    # Keras says the same as OpenVINO.
    photos = sorted((labelled / "photos").iterdir())[:3]
    runs = [
        vehclass("classify", *photos, "-m", "models/mine", "--runtime", kind, "--json", "--top-k", "9")
        for kind in ("openvino", "keras")
    ]
    by_openvino, by_keras = ([file["tasks"] for file in run.json["files"]] for run in runs)
    for ours, theirs in zip(by_openvino, by_keras, strict=True):
        for task in ours:
            assert ours[task]["label"] == theirs[task]["label"]
            assert ours[task]["probabilities"] == pytest.approx(theirs[task]["probabilities"], abs=1e-4)


def test_a_failed_training_leaves_nothing_behind(tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    folders(tmp_path / "data", {"red": 20, "blue": 20})
    for words, says in (
        (["--backbone", "vgg99"], "There is no backbone"),
        (["--backbone", "mobilenet_v3_small", "--weights", "nowhere.weights.h5"], "cannot be used"),
    ):
        answer = vehclass("train", "data", "--out", "models/mine", "--epochs", "1", *words)
        assert answer.code == 2, answer.err
        assert says in answer.err
        assert "Traceback" not in answer.err
        assert list(tmp_path.glob("models/*")) + list(tmp_path.glob("models/.*")) == []


def test_overwriting_replaces_models_only(tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    folders(tmp_path / "data", {"red": 20, "blue": 20})
    answer = vehclass("train", "data", "--out", "data", "--overwrite")
    assert (answer.code, "is no model folder" in answer.err) == (2, True)
    assert len(list((tmp_path / "data" / "red").iterdir())) == 20


def test_the_drawn_manifest_is_one_that_training_reads(drawn: Path) -> None:
    with (drawn / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"path", "view", "condition", "body"} == set(rows[0])
    assert all((row["body"] == "") == (row["view"] == "interior") for row in rows)
    assert len(read_catalogue(drawn).samples) == 24


def test_drawing_repeats_and_weighs_what_photos_weigh(tmp_path: Path) -> None:
    first, second, other = (
        draw(tmp_path / name, "--count", "6", "--seed", seed) for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    files = [
        {file.name: file.read_bytes() for file in (folder / "photos").iterdir()} for folder in (first, second, other)
    ]
    assert files[0] == files[1]
    assert files[0] != files[2]
    sizes = [len(data) for data in files[0].values()]
    assert 60_000 < np.mean(sizes) < 160_000
    with Image.open(first / "photos" / "000000.jpg") as photo:
        assert photo.size == (1024, 768)
    by_label = draw(tmp_path / "d", "--count", "12", "--seed", "1", "--by", "body", "--size", "160x120")
    assert {folder.name for folder in by_label.iterdir()} <= {"hatchback", "saloon", "suv", "van", "pickup"}
    shutil.rmtree(tmp_path / "d")
