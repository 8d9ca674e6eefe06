"""Labelled photos become a model folder; data that cannot be learnt from is refused in a sentence."""

import csv
import io
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SAMPLE, Answer, draw
from tests.test_secrets import CANARY, canaries
from vehclass.errors import DataError
from vehclass.model.folder import open_model
from vehclass.records import Task
from vehclass.training.calibrate import calibrated, label_thresholds, nll, temperature, threshold
from vehclass.training.dataset import Catalogue, Sample, read_catalogue
from vehclass.training.decoded import Dataset, dataset_of, look, typical_side
from vehclass.training.findings import label_findings, learnt_before, photo_findings, split_findings
from vehclass.training.fit import split
from vehclass.training.splits import learnt_from, read_splits, split_rows, write_splits


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (48, 48), seed: int = 0, quality: int = 90) -> bytes:
    """A photo of its own for each seed: clouds in a colour."""
    rng = np.random.default_rng(seed)
    clouds = Image.fromarray(rng.integers(0, 80, (6, 6), np.uint8)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.clip(np.array(colour) + np.asarray(clouds)[..., None].astype(float) - 40, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def folders(root: Path, counts: dict[str, int]) -> Path:
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            red = 200 if label.endswith("red") else 40
            seed = zlib.crc32(f"{root.name}/{label}/{number}".encode())
            (root / label / f"{number}.jpg").write_bytes(jpeg((red, 90, 240 - red), seed=seed))
    return root


def loaded(data: Path, side: int = 32) -> Dataset:
    catalogue = read_catalogue(data)
    seen = look(catalogue, (side, side), cache_beside=data)
    return dataset_of(catalogue, seen, split(catalogue, seen, 0))


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
        for part in ("train", "val", "test"):
            folders(tmp_path / part, {"red": 3, "blue": 3})
        dataset = loaded(tmp_path)
        assert {split: len(rows) for split, rows in dataset.rows.items()} == {"train": 6, "val": 6, "test": 6}
        for name, rows in dataset.rows.items():
            assert {dataset.paths[row].parent.parent.name for row in rows} == {name}

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
            ({"red": 5, "blue": 0}, "'blue' is empty"),
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
            ("path,view,split\n0.jpg,a,holdout\n", "line 2 has the split 'holdout'"),
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
        dataset = loaded(tmp_path)
        assert [(file.path.name, file.code) for file in dataset.rejected] == [("3.jpg", "not_an_image")]
        assert sum(len(rows) for rows in dataset.rows.values()) == 39

    def test_a_label_that_loses_all_its_photos(self, tmp_path: Path) -> None:
        folders(tmp_path, {"red": 20, "blue": 1})
        (tmp_path / "blue" / "0.jpg").write_bytes(b"no photo")
        with pytest.raises(DataError, match="no photo of the label 'blue' can be decoded"):
            loaded(tmp_path)

    @pytest.mark.parametrize(
        ("counts", "code"),
        [
            ({"red": 5}, "too_few_labels"),
            ({"red": 5, "Red": 5}, "labels_alike"),
            ({"red": 5, "red ": 5}, "labels_alike"),
        ],
    )
    def test_labels_that_stop_training(self, tmp_path: Path, counts: dict[str, int], code: str) -> None:
        found = label_findings(read_catalogue(folders(tmp_path, counts)))
        assert [one.code for one in found if one.severity == "error"] == [code]

    def test_too_few(self, tmp_path: Path) -> None:
        catalogue = read_catalogue(folders(tmp_path, {"red": 1, "blue": 1}))
        seen = look(catalogue, (32, 32))
        found = split_findings(split(catalogue, seen, 0), catalogue, np.zeros((2, 1), np.int32))
        assert "too_few_photos" in [one.code for one in found if one.severity == "error"]

    def test_copies_are_found_whatever_happened_to_them(self, tmp_path: Path) -> None:
        data = folders(tmp_path, {"red": 30, "blue": 30})
        shutil.copy(data / "red" / "3.jpg", data / "red" / "copy of 3.jpg")
        with Image.open(data / "blue" / "4.jpg") as photo:
            smaller = photo.resize((40, 40), Image.Resampling.BILINEAR).point(lambda value: min(255, value * 1.05 + 5))
            smaller.save(data / "blue" / "sent.jpg", quality=60)
        shutil.copy(data / "red" / "5.jpg", data / "blue" / "wrong.jpg")
        catalogue = read_catalogue(data)
        seen = look(catalogue, (48, 48))
        found = {one.code: one for one in photo_findings(catalogue, seen, 48)}
        assert set(found) == {"exact_copies", "near_copies", "copies_disagree"}
        assert found["exact_copies"].examples == ("blue/wrong.jpg = red/5.jpg", "red/3.jpg = red/copy of 3.jpg")
        assert found["near_copies"].examples == ("blue/4.jpg = blue/sent.jpg",)
        assert found["copies_disagree"].examples == ("blue/wrong.jpg = red/5.jpg",)
        for seed in range(12):
            rows = split(catalogue, seen, seed)
            of = {
                str(catalogue.samples[row].path.relative_to(data)): name for name, some in rows.items() for row in some
            }
            assert of["blue/4.jpg"] == of["blue/sent.jpg"]
            assert of["red/3.jpg"] == of["red/copy of 3.jpg"]
            assert of["blue/wrong.jpg"] == of["red/5.jpg"]

    def test_a_leak_between_given_splits_is_named(self, tmp_path: Path) -> None:
        for split_name in ("train", "test"):
            folders(tmp_path / split_name, {"red": 20, "blue": 20})
        shutil.copy(tmp_path / "train" / "red" / "1.jpg", tmp_path / "test" / "red" / "99.jpg")
        catalogue = read_catalogue(tmp_path)
        found = {one.code: one for one in photo_findings(catalogue, look(catalogue, (48, 48)), 48)}
        assert found["leak"].severity == "warning"
        assert "one in test/ and one in train/" in found["leak"].message
        assert found["leak"].examples == ("test/red/99.jpg = train/red/1.jpg",)

    def test_small_rare_and_bare_photos(self, tmp_path: Path) -> None:
        data = folders(tmp_path, {"red": 60, "blue": 5})
        (data / "red" / "tiny.jpg").write_bytes(jpeg((200, 90, 40), (20, 48), seed=99))
        rows = [f"{label}/{file.name},{label}" for label in ("red", "blue") for file in (data / label).iterdir()]
        (data / "bare.jpg").write_bytes(jpeg((9, 200, 9), seed=100))
        (data / "manifest.csv").write_text("path,colour\nbare.jpg,\n" + "\n".join(rows))
        catalogue = read_catalogue(data)
        seen = look(catalogue, (48, 48))
        found = {one.code: one for one in (*label_findings(catalogue), *photo_findings(catalogue, seen, 48))}
        assert set(found) == {"few_photos", "imbalance", "unlabelled", "small_photos"}
        assert found["few_photos"].examples == ("blue (5)",)
        assert found["small_photos"].examples == ("red/tiny.jpg",)
        assert found["unlabelled"].examples == ("bare.jpg",)
        bare = next(row for row, sample in enumerate(catalogue.samples) if sample.path.name == "bare.jpg")
        assert all(bare not in part for part in split(catalogue, seen, 0).values())

    def test_the_split_keeps_the_mix_and_repeats(self) -> None:
        samples = [Sample(Path(str(n)), {"a": "x" if n % 10 else "rare", "b": str(n % 3)}) for n in range(600)]
        rows = split_rows(samples, np.arange(600), seed=4)
        assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(600))
        assert [len(rows[split]) for split in ("train", "val", "test")] == pytest.approx([480, 60, 60], abs=1)
        for part in rows.values():
            share = np.mean([samples[row].labels["a"] == "rare" for row in part])
            assert 0.07 < share < 0.13
        again = split_rows(samples, np.arange(600), seed=4)
        assert all((rows[split] == again[split]).all() for split in rows)
        other = split_rows(samples, np.arange(600), seed=5)
        assert (rows["val"] != other["val"]).any()

    def test_a_label_of_two_photos_keeps_one_to_learn_from(self) -> None:
        samples = [Sample(Path(f"{n}"), {"a": "many" if n < 9 else "two"}) for n in range(11)]
        for seed in range(20):
            train = split_rows(samples, np.arange(11), seed)["train"]
            assert any(samples[row].labels["a"] == "two" for row in train)

    def test_what_was_learnt_before_is_not_measured_on(self, tmp_path: Path) -> None:
        """Neither in the next split nor by `evaluate` of the model after next, nor are its copies."""
        samples = [Sample(Path(f"{n}"), {"a": "x"}) for n in range(100)]
        pairs = [[n, n + 1] for n in range(0, 100, 2)]
        rows = split_rows(samples, np.arange(100), 0, pairs, learnt=range(0, 60, 2))
        assert set(range(60)) <= set(rows["train"].tolist())
        assert 8 <= len(rows["val"]) <= 10  # a tenth of all, from those that are new
        assert 8 <= len(rows["test"]) <= 10
        digests = [f"{n:016x}" for n in range(100)]
        write_splits(
            tmp_path / "splits.csv", Path(), [one.path for one in samples], digests, rows, {digests[3], "f" * 16}
        )
        record = read_splits(tmp_path)
        assert record is not None
        assert (record["f" * 16], record[digests[3]]) == ("before", "train")
        assert learnt_from(record) == {digests[row] for row in (*rows["train"], *rows["val"])} | {"f" * 16}
        found = learnt_before(rows, digests, {digests[0], digests[int(rows["test"][0])]})
        assert [(one.severity, one.code, one.count) for one in found] == [
            ("note", "learnt_before", 1),
            ("warning", "leak", 1),
        ]

    def test_a_task_without_labels_in_a_split_is_told(self) -> None:
        rows = {"train": np.arange(4), "val": np.arange(4, 6), "test": np.arange(6, 8)}
        targets = np.array([[0, -1], [1, -1], [0, -1], [1, -1], [0, -1], [1, -1], [0, 0], [1, 1]], np.int32)
        catalogue = Catalogue(Path(), (Task("a", ("x", "y")), Task("b", ("p", "q"))), ())
        found = {one.code: one.severity for one in split_findings(rows, catalogue, targets)}
        assert found["no_label_in_train"] == "error"
        assert found["no_label_in_val"] == "warning"

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

    def test_what_could_not_be_checked_asks_for_a_look(self) -> None:
        nothing = calibrated(Task("a", ("x", "y")), np.zeros((0, 2), np.float32), np.zeros(0, np.int32), 0.95)
        assert nothing.thresholds == (1.0, 1.0)

    def test_the_threshold_keeps_the_precision(self) -> None:
        tops = np.linspace(0.5, 1, 1000)
        shares = np.stack([tops, 1 - tops], axis=1)
        targets = np.where(np.arange(1000) < 300, np.arange(1000) % 2, 0).astype(np.int32)  # half wrong below 0.65
        at = threshold(shares, targets, 0.95)
        sure = tops >= at
        assert 0.55 < at < 0.65
        assert (targets[sure] == 0).mean() >= 0.95
        assert threshold(shares, np.ones(1000, np.int32), 0.95) == 1.0

    def test_the_promise_holds_for_other_photos(self) -> None:
        """The lowest threshold that a sample allows would be too low for others in half of all cases."""
        rng = np.random.default_rng(1)

        def answers(count: int) -> tuple[np.ndarray, np.ndarray]:
            tops = rng.uniform(0.5, 1, count)
            return np.stack([tops, 1 - tops], axis=1), (rng.random(count) > tops).astype(np.int32)

        kept = 0
        for _ in range(200):
            at = threshold(*answers(800), 0.9)
            shares, targets = answers(20_000)
            kept += (targets[shares[:, 0] >= at] == 0).mean() >= 0.9
        assert kept >= 160

    def test_equal_probabilities_pass_together(self) -> None:
        shares = np.array([[0.9, 0.1]] * 50 + [[0.8, 0.2]] * 50)
        targets = np.array([0] * 50 + [0] * 25 + [1] * 25, np.int32)
        assert threshold(shares, targets, 0.85) == pytest.approx(0.9)

    def test_a_label_with_answers_enough_has_its_own(self) -> None:
        rng = np.random.default_rng(2)
        shares = rng.dirichlet((1, 1, 1), 900)
        shares = np.concatenate([shares, np.tile([0.0, 0.05, 0.95], (5, 1))])
        targets = shares.argmax(axis=1).astype(np.int32)
        first = np.flatnonzero((targets == 0) & (shares.max(axis=1) < 0.7))
        targets[first] = 1  # answers of the first label are wrong where they are unsure
        few = shares[targets != 2], targets[targets != 2]
        own = label_thresholds(*few, 0.95, 0.42)
        assert own[0] > 0.65
        assert own[1] < 0.5
        assert own[2] == 0.42


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
    words += ["--unlike", folders(tmp_path / "other", {"things": 9}), "--task-weight", "body=0.5"]
    words += ["--note", "Made with drawn photos."]
    done = vehclass(*words, timeout=200, **canaries())  # secrets in the environment, which training has no use for
    assert done.code == 0, done.err
    written = [path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()]
    assert not any(CANARY.encode() in text for text in (*written, (done.out + done.err).encode()))
    assert "warning: 1 file cannot be used (not_an_image)" in done.err
    assert "photos/000004.jpg" in done.err
    assert "only 11 photos to check with" in done.err
    assert "epoch   2/2" in done.err
    assert "right: " in done.err
    assert "On the test split" in done.out

    folder = open_model(tmp_path / "models/mine")
    assert [task.name for task in folder.info.tasks] == ["view", "condition", "body"]
    assert set(folder.files) == {"model.keras", "openvino.xml", "openvino.bin", "splits.csv"}
    documents = {"card.md", "report.html", "history.csv", "history.json", "model.json"}
    assert {file.name for file in folder.path.iterdir()} == {*folder.files, *documents}
    facts = json.loads((tmp_path / "models/mine/model.json").read_text())
    assert facts["exports"]["openvino"]["labels_changed"] == 0
    assert facts["exports"]["openvino"]["greatest_difference"] < 1e-3
    assert facts["data"]["photos"] == {"train": 97, "val": 11, "test": 11}
    with (folder.path / "splits.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert Counter(row["split"] for row in kept) == facts["data"]["photos"]
    assert (labelled / kept[0]["path"]).is_file()
    assert folder.info.novelty_limit == facts["novelty"]["limit"]
    assert set(facts["novelty"]["examples"]) == {"noise", "clouds", "blank", "other"}
    assert "Made with drawn photos." in (folder.path / "card.md").read_text()
    assert "Made with drawn photos." in (folder.path / "report.html").read_text()
    confusion = np.array(facts["metrics"]["condition"]["confusion"])
    assert confusion.sum() == facts["metrics"]["condition"]["support"] == 11
    assert confusion.trace() / 11 == pytest.approx(facts["metrics"]["condition"]["accuracy"], abs=1e-3)
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


def test_a_manifest_by_a_relative_path(labelled: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    shutil.copytree(labelled, tmp_path / "photos")
    done = vehclass("train", "photos/manifest.csv", "--out", "m", "--epochs", "1", "--input-size", "32", timeout=200)
    assert done.code == 0, done.err
    with (tmp_path / "m" / "splits.csv").open(newline="") as file:
        assert {row["path"].partition("/")[0] for row in csv.DictReader(file)} == {"photos"}
    measured = vehclass("evaluate", "m", "photos", "--json")
    assert measured.code == 3, measured.err  # one photo is broken
    assert measured.json["photos"] == 11


def test_a_failed_training_leaves_nothing_behind(tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    folders(tmp_path / "data", {"red": 20, "blue": 20})
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "note.txt").write_text("no photo")
    for words, says in (
        (["--backbone", "vgg99"], "There is no backbone"),
        (["--weights", "nowhere.weights.h5"], "cannot be used"),
        (["--weights", str(SAMPLE), "--backbone", "mobilenet_v3_small"], "does not fit the mobilenet_v3_small"),
        (["--task-weight", "body=2"], "no task of data"),
        (["--time-limit", "soon"], "such as 30m"),
        (["--unlike", "words"], "No photo in words can be decoded"),
        (["--task", "loss"], "a task called 'loss'"),
        (["--weights", "words/note.txt"], "cannot be used for small"),
        (["--weights", "words/note.txt", "--preset", "best"], "cannot be used for medium"),
        (["--weights", "words/note.txt", "--preset", "best", "--time-limit", "5m"], "cannot be used for small"),
        (["--backbone", "resnet50", "--input-size", "16"], "at least 32"),
        (["--preset", "perfect"], "choose one of quick, balanced, best"),
    ):
        answer = vehclass("train", "data", "--out", "models/mine", "--epochs", "1", *words)
        assert answer.code == 2, answer.err
        assert says in answer.err
        assert "Traceback" not in answer.err
        assert list(tmp_path.glob("models/*")) + list(tmp_path.glob("models/.*")) == []


def test_data_are_looked_over_before_training(tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    data = folders(tmp_path / "data", {"red": 60, "blue": 50})
    clean = vehclass("data", "check", "data", "--task", "colour", "--json")
    assert (clean.code, [one["code"] for one in clean.json["findings"]]) == (0, ["few_to_check"])
    assert clean.json["split"] == {"train": 89, "val": 11, "test": 10}
    (data / "red" / "0.jpg").write_bytes(b"no photo")
    shutil.copy(data / "red" / "1.jpg", data / "blue" / "copy.jpg")
    shown = vehclass("data", "check", "data")
    assert shown.code == 0
    for words in ("undecodable", "red/0.jpg", "copies_disagree", "111 photos, 110 of them usable", "48x48"):
        assert words in shown.out, shown.out
    assert vehclass("data", "check", "data", "--strict").code == 1
    strict = vehclass("train", "data", "--out", "m", "--strict")
    assert (strict.code, "see `vehclass data check`" in strict.err) == (2, True)
    assert not list(tmp_path.glob("m")) + list(tmp_path.glob(".m*"))
    for file in data.rglob("*.jpg"):
        file.write_bytes(b"no photo")
    for words in (("data", "check", "data"), ("train", "data", "--out", "m")):
        broken = vehclass(*words)
        assert broken.code == (1 if words[0] == "data" else 2), broken.err
        assert "Traceback" not in broken.err
    assert "no photo of the label 'blue' can be decoded" in vehclass("train", "data", "--out", "m").err
    assert vehclass("data", "check", "nowhere").code == 2


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
