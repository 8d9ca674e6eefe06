"""A model's figures are those that can be worked out by hand, its report stands alone, and `evaluate` leaves out what was learnt."""

import csv
import hashlib
import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SAMPLE, Answer
from vehclass.errors import DecodeError
from vehclass.model.classifier import answers
from vehclass.model.folder import open_model, write_model
from vehclass.records import Task
from vehclass.training import plots, statements
from vehclass.training.comparison import compare, mcnemar
from vehclass.training.evaluate import calibration_error, judge, measure, reliability
from vehclass.training.intervals import resample, tally, wilson
from vehclass.training.report import Examined, write_card, write_report

NASTY = ('<script>alert("x")</script>', "a|b`c`[d](http://evil.example)", "$\\frac$ & x", "日本 車", "\u202etxt.exe")


def logits_of(shares: list[list[float]]) -> Any:
    return np.log(np.array(shares)).astype(np.float32)


def drawn_case(labels: int, photos: int, seed: int = 0) -> tuple[Task, Any, Any]:
    """A task, logits and targets of a model that is right most of the time."""
    rng = np.random.default_rng(seed)
    task = Task("make", tuple(f"Make {n} Saloon" for n in range(labels)), 1.1, 0.4)
    truth = rng.integers(0, labels, photos).astype(np.int32)
    logits = rng.normal(0, 1, (photos, labels)).astype(np.float32)
    logits[np.arange(photos), truth] += 3
    return task, logits, truth[:, None]


class TestFigures:
    """What is measured."""

    def test_a_case_worked_out_by_hand(self) -> None:
        task = Task("condition", ("clean", "dirty", "damaged"), 1.0, 0.6)
        shares = [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7], [0.65, 0.05, 0.3]]
        targets = np.array([[0], [1], [1], [1], [-1]], np.int32)
        of = measure(logits_of(shares), targets, (task,))["condition"]
        assert (of["accuracy"], of["support"]) == (0.5, 4)
        assert of["confusion"] == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
        assert (of["coverage"], of["precision_when_sure"]) == (0.75, 0.6667)
        assert of["top_k"] == {"2": 0.75}
        clean, dirty, damaged = of["per_label"]
        assert [clean[key] for key in ("precision", "recall", "f1", "support")] == [0.5, 1.0, 0.6667, 1]
        assert [dirty[key] for key in ("precision", "recall", "f1", "coverage")] == [1.0, 0.3333, 0.5, 0.6667]
        assert [damaged[key] for key in ("precision", "recall", "f1", "support")] == [0.0, None, 0.0, 0]
        assert of["macro_f1"] == round((2 / 3 + 1 / 2) / 2, 4)
        assert of["nll"] == pytest.approx(-np.log([0.7, 0.4, 0.8, 0.1]).mean(), abs=1e-4)
        assert of["ece"] == pytest.approx(abs(0.5 - (0.7 + 0.5 + 0.8 + 0.7) / 4), abs=1e-4)  # four photos are one bin
        assert sorted((pair["truth"], pair["taken_for"], pair["count"]) for pair in of["confused"]) == [
            ("dirty", "clean", 1),
            ("dirty", "damaged", 1),
        ]
        assert json.loads(json.dumps(of)) == of

    def test_sure_is_what_classifying_says(self) -> None:
        """The same rules as classifier.answers: thresholds by label, and the novelty column."""
        rng = np.random.default_rng(3)
        tasks = (
            Task("view", ("in", "out"), 0.7, 0.8),
            Task("body", ("van", "suv", "car"), 1.4, 0.5, (0.9, 0.5, 0.7)),
        )
        logits = rng.normal(0, 2, (400, 6)).astype(np.float32)
        targets = np.stack([rng.integers(-1, 2, 400), rng.integers(-1, 3, 400)], axis=1).astype(np.int32)
        said = answers(logits, tasks, novelty_limit=1.0)
        for column, (task, seen) in enumerate(judge(logits, targets, tasks, 1.0)):
            rows = np.flatnonzero(targets[:, column] >= 0)
            sure = [not said[row][column].needs_review for row in rows]  # type: ignore[index]
            assert 0 < sum(sure) < len(sure)
            assert seen.sure.tolist() == sure
            assert measure(logits, targets, tasks, 1.0)[task.name]["coverage"] == round(float(np.mean(sure)), 4)
        assert (
            measure(logits, targets, tasks)["view"]["coverage"]
            > measure(logits, targets, tasks, 1.0)["view"]["coverage"]
        )

    def test_equal_probabilities_count_as_argmax_has_it(self) -> None:
        task = Task("t", ("a", "b", "c"))
        of = measure(np.zeros((3, 3), np.float32), np.array([[0], [0], [2]], np.int32), (task,))["t"]
        assert (of["accuracy"], of["top_k"]) == (0.6667, {"2": 0.6667})

    def test_a_task_without_photos(self) -> None:
        task = Task("t", ("a", "b"))
        of = measure(np.zeros((2, 2), np.float32), np.full((2, 1), -1, np.int32), (task,))["t"]
        assert (of["accuracy"], of["support"], of["ece"], of["nll"], of["macro_f1"]) == (None, 0, None, None, None)
        assert of["intervals"]["accuracy"] is None
        assert of["per_label"][0]["intervals"] == {"precision": None, "recall": None}

    def test_many_labels(self) -> None:
        task, logits, targets = drawn_case(200, 10_000)
        of = measure(logits, targets, (task,))["make"]
        assert of["top_k"]["5"] > of["top_k"]["2"] > of["accuracy"]
        assert len(of["confused"]) == 50
        counts = [pair["count"] for pair in of["confused"]]
        assert counts == sorted(counts, reverse=True)
        assert measure(logits, targets, (task,)) == {"make": of}, "the same seed, the same figures"


class TestCalibration:
    """Probabilities beside what came true."""

    def test_honest_and_overconfident(self) -> None:
        rng = np.random.default_rng(0)
        tops = rng.uniform(0.5, 1, 50_000)
        honest = calibration_error(reliability(tops, rng.random(50_000) < tops))
        boastful = calibration_error(reliability(tops, rng.random(50_000) < tops - 0.2))
        assert honest is not None
        assert honest < 0.01
        assert boastful == pytest.approx(0.2, abs=0.01)

    def test_bins_have_equal_mass_and_no_order(self) -> None:
        rng = np.random.default_rng(1)
        tops = rng.beta(8, 1, 3000)
        right = rng.random(3000) < tops
        bins = reliability(tops, right)
        assert [one["count"] for one in bins] == [200] * 15
        assert [one["probability"] for one in bins] == sorted(one["probability"] for one in bins)
        # Many answers of one probability, the right ones first: however they are ordered, they are one bin.
        same = np.full(300, 0.9)
        order = np.r_[np.ones(270, bool), np.zeros(30, bool)]
        assert calibration_error(reliability(same, order)) == 0.0
        assert reliability(same, order) == reliability(same, order[::-1])

    def test_bins_worked_out_by_hand(self) -> None:
        tops = np.r_[np.full(10, 0.6), np.full(10, 0.9)]
        right = np.r_[np.arange(10) < 8, np.arange(10) < 7]
        assert reliability(tops, right) == [
            {"probability": 0.6, "accuracy": 0.8, "count": 10},
            {"probability": 0.9, "accuracy": 0.7, "count": 10},
        ]
        assert calibration_error(reliability(tops, right)) == 0.2

    def test_temperature_counts(self) -> None:
        rng = np.random.default_rng(2)
        honest = rng.normal(0, 2, (5000, 3))
        shares = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
        truth = (rng.random(5000)[:, None] > shares.cumsum(axis=1)).sum(axis=1).astype(np.int32)
        of = measure((honest * 3).astype(np.float32), truth[:, None], (Task("t", ("a", "b", "c"), 3.0),))["t"]
        assert of["ece"] < 0.02 < 0.1 < of["ece_uncalibrated"]
        assert of["nll"] < of["nll_uncalibrated"]


class TestIntervals:
    """How far a figure may be off."""

    def test_they_hold_the_truth_about_95_times_in_100(self) -> None:
        rng = np.random.default_rng(7)
        held = {"accuracy": 0, "coverage": 0, "precision_when_sure": 0, "recall": 0}
        draws = 300
        for draw in range(draws):
            truth = rng.integers(0, 2, 200)
            sure = rng.random(200) < 0.6
            right = rng.random(200) < np.where(sure, 0.9, 0.7)  # so 0.82 of all
            found = resample(tally(truth, np.where(right, truth, 1 - truth), sure, 2), draw)
            means = {"accuracy": 0.82, "coverage": 0.6, "precision_when_sure": 0.9}
            for name, mean in means.items():
                low, high = found.overall[name] or (0, 0)
                held[name] += low <= mean <= high
            low, high = found.by_label[0]["recall"] or (0, 0)
            held["recall"] += low <= 0.82 <= high
        for name, count in held.items():
            assert 0.90 < count / draws < 0.985, name

    def test_drawing_counts_is_drawing_photos(self) -> None:
        rng = np.random.default_rng(0)
        truth, guesses = rng.integers(0, 3, 120), rng.integers(0, 3, 120)
        right = truth == guesses
        slow = [right[rng.integers(0, 120, 120)].mean() for _ in range(20_000)]
        fast = resample(tally(truth, guesses, np.ones(120, bool), 3), 0).overall["accuracy"]
        assert fast == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.012)

    def test_where_all_photos_agree(self) -> None:
        """Drawing them again would say that nothing can be off; the exact bound for 10 of 10 is 69.2 %."""
        ones = np.zeros(10, int)
        found = resample(tally(ones, ones, np.zeros(10, bool), 2), 0)
        assert found.overall["accuracy"] == [0.6915, 1.0]
        assert found.overall["coverage"] == [0.0, 0.3085]
        assert found.overall["precision_when_sure"] is None

    def test_wilson(self) -> None:
        assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
        assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


class TestComparison:
    """Better, or chance."""

    @pytest.mark.parametrize(
        ("b", "c", "p", "test"),
        [
            (0, 0, 1.0, "exact binomial"),
            (5, 5, 1.0, "exact binomial"),
            (1, 9, 22 / 1024, "exact binomial"),  # 2 (1 + 10) / 2^10
            (0, 6, 2 / 64, "exact binomial"),
            (59, 121, 5.450e-06, "chi-square with continuity correction"),  # chi-square 61^2 / 180 = 20.67
            (40, 40, 1.0, "chi-square with continuity correction"),
            (10, 20, 0.1003, "chi-square with continuity correction"),  # 9^2 / 30 = 2.7
        ],
    )
    def test_mcnemar(self, b: int, c: int, p: float, test: str) -> None:
        for pair in ((b, c), (c, b)):
            assert mcnemar(*pair) == (pytest.approx(p, rel=1e-3), test)

    def test_the_two_tests_agree_where_they_meet(self) -> None:
        exact = mcnemar(7, 17)[0]
        assert mcnemar(7, 18)[0] == pytest.approx(exact, abs=0.03)

    def test_what_is_said(self) -> None:
        first = np.r_[np.ones(80, bool), np.zeros(20, bool)]
        better = compare(first, np.ones(100, bool), ("a@1", "b@2"))
        assert (better["accuracy"], better["difference"]) == ([0.8, 1.0], 0.2)
        assert (better["only_first_right"], better["only_second_right"]) == (0, 20)
        low, high = better["difference_interval"]
        assert 0.1 < low < 0.2 < high < 0.3
        assert better["sentence"].startswith("b@2 is right more often")
        shifted = compare(first, np.roll(first, 3), ("a@1", "b@2"))
        assert "No difference can be told apart from chance" in shifted["sentence"]
        assert shifted["p"] == 1.0
        assert "same ones of 100 photos" in compare(first, first, ("a@1", "b@2"))["sentence"]


def facts_of(task: Task, metrics: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "mine", "tasks": [asdict(task)], "metrics": metrics, **more}


class Outside(HTMLParser):
    """Collects what a page would fetch or run, and the names of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.elements: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        for name, value in attrs:
            fetches = name in ("src", "href", "action", "poster", "srcset", "data", "background")
            if name.startswith("on") or (fetches and not (value or "").startswith(("#", "data:image/"))):
                self.found.append(f"{tag} {name}={value}")
        if tag in ("script", "link", "iframe", "object", "embed", "base"):
            self.found.append(tag)

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.found += re.findall(r"url\(|@import", data)


def outside(page: str) -> list[str]:
    """What a page would fetch or run; its elements are known ones."""
    reader = Outside()
    reader.feed(page)
    assert "figure" in reader.elements
    return reader.found


class TestReport:
    """One page that stands alone."""

    def test_everything_from_outside_stays_text(self, tmp_path: Path) -> None:
        task = Task("<i>task</i>", NASTY, 1.0, 0.5)
        rng = np.random.default_rng(0)
        logits = rng.normal(0, 2, (60, 5)).astype(np.float32)
        targets = rng.integers(0, 5, (60, 1)).astype(np.int32)
        paths = tuple(Path(f"/data/'><img src=x onerror=alert({n})>.jpg") for n in range(60))

        def pixels(row: int) -> Any:
            if row % 3 == 0:
                raise DecodeError("corrupt", "It is gone.")
            return np.full((40, 60, 3), row, np.uint8)

        examined = Examined(paths, logits, targets, (task,), None, pixels, Path("/data"))
        metrics = measure(logits, targets, (task,))
        more = {
            "plan": {
                "task_name": "$(rm -rf ~)`x`",
                "weights": None,
                "epochs": 3,
                "time_limit": 1800.0,
                "flip": False,
                "task_weights": {"view": 0.5},
            },
            "history": [{"loss": 2.0, "val_loss": 1.0, task.name: 0.3, f"val_{task.name}": 0.4, "seconds": 1.0}],
            "data": {
                "photos": {"train": 9, "val": 9, "test": 60},
                "labels": {task.name: dict.fromkeys(NASTY, 12)},
                "left_out": [{"file": "<b>.jpg", "code": "empty"}],
                "findings": [{"severity": "note", "message": "<u>x</u>", "examples": ["<s>"]}, "plain <q>"],
            },
            "novelty": {"limit": 2.0, "kept": 0.98, "examples": {"<cats>": 0.5}},
        }
        write_report(tmp_path, facts_of(task, metrics, **more), examined)
        page = (tmp_path / "report.html").read_text()
        assert outside(page) == []
        assert outside("<figure><img src='http://x'><b onclick=x><script></script>") != []
        assert html.escape(NASTY[0], quote=False) in page.replace("&#34;", '"')
        for tag in ("<img src=x", "<i>", "<b>.jpg", "<u>", "<s>", "<q>", "<cats>", "\u202e"):
            assert tag not in page, tag
        assert page.count("data:image/jpeg") > 5
        assert "no picture" in page
        assert "/data/" not in page

        write_card(tmp_path / "card.md", facts_of(task, metrics, **more))
        card = (tmp_path / "card.md").read_text()
        assert not re.search(r"<(script|i|u|q|cats)>|[^\\]\[d|[^\\]\|b|\u202e", card)
        assert "--task '$(rm -rf ~)`x`' --epochs 3 --time-limit 1800s --no-flip --task-weight view=0.5" in card

    def test_two_hundred_labels_stay_small(self, tmp_path: Path) -> None:
        task, logits, targets = drawn_case(200, 4000)
        noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3)).astype(np.uint8)
        paths = tuple(Path(f"{n}.jpg") for n in range(4000))
        examined = Examined(paths, logits, targets, (task,), None, lambda row: noise)
        write_report(tmp_path / "r.html", facts_of(task, measure(logits, targets, (task,))), examined)
        page = (tmp_path / "r.html").read_text()
        assert len(page) < 3_000_000
        assert outside(page) == []
        assert page.count("data:image/jpeg") == 24
        assert all(f"Make {n} Saloon" in page for n in range(200))
        assert not list(tmp_path.glob(".*")), "a part was left behind"

    @pytest.mark.parametrize(("labels", "readable"), [(3, 45), (27, 20), (40, 20), (200, 11)])
    def test_a_confusion_matrix_has_room_for_its_names(self, labels: int, readable: int) -> None:
        """Dots of the screen for a label, at the size that the picture is shown at."""
        names = [f"Make {n} Saloon" for n in range(labels)]
        shown = plots.confusion(np.eye(labels, dtype=np.int64) * 7, names)
        assert min(shown.width, shown.height) / labels > readable
        assert labels > plots.MOST_NUMBERED or shown.width < 1180, "wider than the page"
        assert shown.png.startswith(b"\x89PNG")

    def test_an_older_model_and_a_task_without_photos(self, tmp_path: Path) -> None:
        facts = json.loads((SAMPLE / "model.json").read_text())
        tasks = tuple(Task(one["name"], tuple(one["labels"]), one["temperature"]) for one in facts["tasks"])
        logits = np.random.default_rng(0).normal(0, 1, (30, 10)).astype(np.float32)
        targets = np.zeros((30, 3), np.int32)
        targets[:, 2] = -1
        facts = {name: value for name, value in facts.items() if name not in ("novelty", "precisions", "history")}
        facts["metrics"] = measure(logits, targets, tasks)
        write_report(tmp_path, facts, Examined(tuple(Path(f"{n}") for n in range(30)), logits, targets, tasks))
        page = (tmp_path / "report.html").read_text()
        assert outside(page) == []
        assert "No photo had a label for this task" in page
        write_card(tmp_path, facts)
        assert (
            "vehclass train DATA --out sample --task label --preset balanced --backbone small"
            in (tmp_path / "card.md").read_text()
        )
        write_card(tmp_path, {"name": "bare", "tasks": facts["tasks"]})
        assert (tmp_path / "card.md").read_text().startswith("# bare\n")

    def test_pictures_leave_nothing_behind(self) -> None:
        import matplotlib as mpl

        before = dict(mpl.rcParams)
        plots.confusion(np.eye(3, dtype=np.int64), ["a", "b", "c"])
        assert dict(mpl.rcParams) == before
        assert plots.curves([], ["t"]) is None

    def test_limits_are_named(self) -> None:
        row = {"label": "rusty", "support": 20, "recall": 0.4}
        few = {"label": "burnt", "support": 2, "recall": 1.0}
        facts = {
            "tasks": [],
            "plan": {"note": "Made with drawn photos."},
            "data": {"photos": {"test": 22}, "left_out": [{"file": "x", "code": "empty"}]},
            "metrics": {"condition": {"per_label": [row, few], "ece": 0.2}},
        }
        said = " ".join(statements.limits(facts))
        for text in ("drawn", "Only 22 photos", "1 file could", "rusty (40%)", "burnt", "20.0%"):
            assert text in said, text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model without word of what it learnt from, in a place where it may be added to."""
    place, sample = tmp_path_factory.mktemp("models"), open_model(SAMPLE)
    (place / "draft").mkdir()
    for name in sample.files:
        if name != "splits.csv":
            shutil.copy(SAMPLE / name, place / "draft")
    facts = {name: value for name, value in sample.info.facts.items() if name not in ("tasks", "files", "version")}
    return write_model(place / "draft", place / "mine", facts, sample.info.tasks).path


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluate_from_outside(drawn: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    """Figures, comparison and report of a model and itself; a broken photo is listed and left out."""
    data = Path(shutil.copytree(drawn, tmp_path / "data"))
    (data / "photos" / "000003.jpg").write_bytes(b"no photo")
    done = vehclass("evaluate", SAMPLE, "data", "--against", SAMPLE, "--report", "out.html", "--json")
    assert done.code == 3, done.err
    said = done.json
    assert (said["photos"], said["left_out"]) == (23, {})
    assert [(Path(one["file"]).name, one["code"]) for one in said["unusable"]] == [("000003.jpg", "not_an_image")]
    assert set(said["tasks"]) == {"view", "condition", "body"}
    assert said["tasks"]["view"]["accuracy"] > 0.9
    assert said["notes"] == []
    assert [(one["task"], one["p"], one["photos"]) for one in said["comparison"]] == [
        ("view", 1.0, 23),
        ("condition", 1.0, 23),
        ("body", 1.0, said["tasks"]["body"]["support"]),
    ]
    assert said["latency"]["ms_one_image"] > 0
    page = (tmp_path / "out.html").read_text()
    assert outside(page) == []
    assert str(tmp_path) not in page
    assert "Comparison" in page

    # The answers are those that `classify` gives to the same photos.
    truth = {row["path"]: row["condition"] for row in rows_of(drawn / "manifest.csv") if "000003" not in row["path"]}
    photos = [drawn / path for path in truth]
    looked = vehclass("classify", *photos, "-m", SAMPLE, "--json").json["files"]
    right = [one["tasks"]["condition"]["label"] == label for one, label in zip(looked, truth.values(), strict=True)]
    sure = [not one["tasks"]["condition"]["needs_review"] for one in looked]
    assert said["tasks"]["condition"]["accuracy"] == round(sum(right) / 23, 4)
    assert said["tasks"]["condition"]["coverage"] == round(sum(sure) / 23, 4)


def test_a_report_without_room_does_not_cost_the_figures(
    drawn: Path, tmp_path: Path, vehclass: Callable[..., Answer]
) -> None:
    (tmp_path / ".out.html.part").mkdir()  # where it would be written first
    done = vehclass("evaluate", SAMPLE, drawn, "--report", "out.html", timeout=120)
    assert done.code == 2
    assert "out.html cannot be written" in done.err
    assert "condition" in done.out


def test_what_was_learnt_is_left_out(drawn: Path, model: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    """By the digest of the bytes, whatever the files are called now."""
    rows = rows_of(drawn / "manifest.csv")
    splits = ["train"] * 10 + ["val"] * 4 + ["test"] * 6
    with (model / "splits.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("sha256", "split", "path"))
        for row, split in zip(rows, splits, strict=False):
            digest = hashlib.sha256((drawn / row["path"]).read_bytes()).hexdigest()
            table.writerow((digest[:16], split, f"elsewhere/{row['path']}"))
            if row is rows[0]:  # a copy of it that went into another split does not make it unseen
                table.writerow((digest[:16], "test", "elsewhere/copy.jpg"))
    done = vehclass("evaluate", model, drawn)
    assert done.code == 0, done.err
    assert "on 10 photos" in done.out
    assert "Left out: 10 train, 4 val, which it learnt from." in done.out
    assert "dirty" in done.out
    assert "images/s" in done.out
    test = vehclass("evaluate", model, drawn, "--split", "test", "--json", "--task", "view").json
    assert (test["photos"], test["left_out"]) == (6, {"train": 10, "val": 4, "in no split": 4})
    assert set(test["tasks"]) == {"view"}
    everything = vehclass("evaluate", model, drawn, "--split", "all", "--json").json
    assert everything["photos"] == 24
    assert "14 of the photos are ones that a model learnt from" in everything["notes"][0]
    # What the other model learnt from is no fair question to compare with, either.
    both = vehclass("evaluate", SAMPLE, drawn, "--against", model, "--json").json
    assert (both["photos"], both["left_out"]) == (10, {"train": 10, "val": 4})


def test_a_folder_per_label(drawn: Path, model: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    for row in rows_of(drawn / "manifest.csv"):
        if row["condition"] == "dirty":  # one label of three is enough to measure on
            (tmp_path / "data/test/dirty").mkdir(parents=True, exist_ok=True)
            shutil.copy(drawn / row["path"], tmp_path / "data/test/dirty")
    shutil.copytree(tmp_path / "data/test", tmp_path / "data/train")
    (model / "splits.csv").unlink(missing_ok=True)
    unsaid = vehclass("evaluate", model, "data")
    assert unsaid.code == 2
    assert "Say with --task what the folders in data answer: view, condition, body." in unsaid.err
    count = len(list((tmp_path / "data/test/dirty").iterdir()))
    for split, photos in (("auto", count), ("train", count), ("all", 2 * count)):
        done = vehclass("evaluate", model, "data", "--task", "condition", "--split", split, "--json")
        assert done.code == 0, done.err
        assert done.json["photos"] == photos
        assert split != "auto" or any("no record" in one for one in done.json["notes"])
        assert list(done.json["tasks"]) == ["condition"]


def test_what_cannot_be_evaluated_is_said(
    drawn: Path, model: Path, tmp_path: Path, vehclass: Callable[..., Answer]
) -> None:
    rows = rows_of(drawn / "manifest.csv")
    data = Path(shutil.copytree(drawn, tmp_path / "data"))

    def manifest(name: str, column: str, labels: list[str]) -> str:
        lines = [f"{row['path']},{label}" for row, label in zip(rows, labels, strict=False)]
        (data / name).write_text("\n".join([f"path,{column}", *lines]) + "\n")
        return f"data/{name}"

    (model / "splits.csv").unlink(missing_ok=True)
    unknown = manifest("unknown.csv", "condition", ["clean", "rusty", "rusty"])
    foreign = manifest("foreign.csv", "colour", ["red", "blue"])
    for words, says in (
        ([unknown], "labels that the model does not know: condition 'rusty' (2)"),
        ([foreign], "has labels for colour only"),
        (["data", "--task", "colour"], "has no task 'colour', only view, condition, body"),
        (["data", "--split", "test"], "has no splits.csv"),
        (["data", "--report", "nowhere/report.html"], "there is no folder nowhere"),
        (["nowhere"], "no such file or folder"),
        (["data", "--against", "nowhere"], "No model at nowhere"),
    ):
        answer = vehclass("evaluate", model, *words)
        assert (answer.code, says in answer.err) == (2, True), answer.err
        assert "Traceback" not in answer.err
        assert answer.out == ""
