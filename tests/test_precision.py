"""Fewer bits are used only where they were asked for, or were measured to give the same answers."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from tests.conftest import SAMPLE, Answer
from tests.test_train import folders
from vehclass.errors import UsageError
from vehclass.model.agreement import closeness
from vehclass.model.folder import open_model
from vehclass.model.precision import choose
from vehclass.model.runtime import OpenVinoRuntime
from vehclass.records import Task

MODERN, PLAIN = ["FP32", "BF16", "INT8"], ["FP32", "INT8"]
ALIKE = {"photos": 1000, "labels_changed": 1, "mean_difference": 0.01, "reviews_changed": 10}


def used(forms: dict[str, Any], capabilities: list[str], asked: str = "auto") -> str:
    return choose({"precisions": forms}, asked, capabilities).name


class TestChoice:
    """What is taken, and why."""

    def test_what_is_proven_is_taken(self) -> None:
        assert used({"bf16": ALIKE, "int8": ALIKE}, MODERN) == "bf16"
        assert used({"bf16": ALIKE, "int8": ALIKE}, PLAIN) == "int8"
        assert used({"int8": ALIKE}, MODERN) == "int8"
        assert used({"bf16": ALIKE}, PLAIN) == "f32"

    @pytest.mark.parametrize(
        ("fault", "why"),
        [
            ({"photos": 99, "labels_changed": 0}, "was compared on 99 photos only"),
            ({"labels_changed": 2}, "changes 0.2% of the labels"),
            ({"mean_difference": 0.0101}, "moves probabilities by 0.010 on average"),
            ({"reviews_changed": 11}, "changes for 1.1% of the photos whether they ask for a look"),
        ],
    )
    def test_a_doubt_keeps_32_bits(self, fault: dict[str, Any], why: str) -> None:
        chosen = choose({"precisions": {"bf16": {**ALIKE, **fault}}}, "auto", MODERN)
        assert chosen.name == "f32"
        assert chosen.why == f"bf16 {why}; int8 was not measured when the model was made"
        assert used({"bf16": {**ALIKE, **fault}}, MODERN, "bf16") == "bf16"  # who asks gets it

    def test_models_of_earlier_versions(self) -> None:
        assert choose({}, "auto", MODERN).name == "f32"

    def test_what_cannot_be_had(self) -> None:
        with pytest.raises(UsageError, match="no bfloat16"):
            choose({"precisions": {"bf16": ALIKE}}, "bf16", PLAIN)
        with pytest.raises(UsageError, match="no such form"):
            choose({"precisions": {"bf16": ALIKE}}, "int8", MODERN)


class TestCloseness:
    """How far answers are apart."""

    TASKS = (Task("a", ("x", "y"), threshold=0.6), Task("b", ("p", "q", "r"), threshold=0.6))
    RNG = np.random.default_rng(1)
    LOGITS = np.concatenate([RNG.normal(0, 3, (500, 5)), RNG.uniform(0, 1, (500, 1))], axis=1).astype(np.float32)

    def test_the_same(self) -> None:
        same = {"photos": 500, "labels_changed": 0, "mean_difference": 0.0, "reviews_changed": 0}
        assert closeness(self.LOGITS, self.LOGITS, self.TASKS, 0.9) == same

    def test_one_photo_in_ten_with_another_label(self) -> None:
        other = self.LOGITS.copy()
        other[::10, 2:5] = np.roll(other[::10, 2:5], 1, axis=1)
        found = closeness(self.LOGITS, other, self.TASKS, 0.9)
        assert found["labels_changed"] == 50
        assert 0.02 < found["mean_difference"] < 0.1

    def test_a_novelty_that_is_off(self) -> None:
        other = self.LOGITS.copy()
        other[:, -1] = 2
        found = closeness(self.LOGITS, other, self.TASKS, 0.9)
        assert (found["labels_changed"], found["mean_difference"]) == (0, 0)
        assert found["reviews_changed"] > 300

    def test_no_number_is_another_answer(self) -> None:
        other = self.LOGITS.copy()
        other[0] = np.nan
        assert closeness(self.LOGITS, other, self.TASKS, 0.9)["reviews_changed"] == 1


def test_the_network_computes_in_what_was_chosen() -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    folder = open_model(SAMPLE)
    width, height = folder.info.input_size
    pixels = np.random.default_rng(0).integers(0, 255, (8, height, width, 3), np.uint8)
    plain, again, short = (
        OpenVinoRuntime(folder, 8, 1, precision).logits(pixels) for precision in ("f32", "f32", "bf16")
    )
    assert (plain == again).all()
    assert (plain != short).any()
    assert np.abs(plain - short).max() < 0.1 * np.abs(plain).max()


def test_a_run_says_what_it_computed_in(vehclass: Callable[..., Answer], drawn: Path, tmp_path: Path) -> None:
    words = ("classify-batch", "-c", drawn, "-m", SAMPLE, "--store", "r.db")
    done = vehclass(*words, "--precision", "f32", "--json")
    assert done.json["precision"] == {"used": "f32", "why": "asked for"}
    assert done.json["device"].endswith("f32")
    with sqlite3.connect(tmp_path / "r.db") as store:
        ((settings,),) = store.execute("SELECT settings FROM run").fetchall()
    store.close()
    assert json.loads(settings)["precision"] == [{"used": "f32", "why": "asked for"}]


@pytest.mark.parametrize("words", [("--precision", "int8"), ("--precision", "fp4")])
def test_one_sentence(words: tuple[str, ...], vehclass: Callable[..., Answer], drawn: Path, tmp_path: Path) -> None:
    done = vehclass("classify-batch", "-c", drawn, "-m", SAMPLE, "--store", "r.db", *words)
    assert done.code == 2
    assert "precision" in done.err
    assert len(done.err.strip().splitlines()) <= 2


def test_an_8_bit_form_is_made_and_measured(vehclass: Callable[..., Answer], tmp_path: Path) -> None:
    data = folders(tmp_path / "coloured", {"red": 60, "blue": 60})
    quick = ("--epochs", "3", "--input-size", "32", "--precision", "float32")
    made = vehclass("train", data, "--out", "m", "--int8", *quick, "--json", timeout=180)
    assert made.code == 0, made.err
    measured = made.json["precisions"]["int8"]
    assert measured["photos"] == made.json["data"]["photos"]["val"]
    assert measured["labels_changed"] == 0
    assert measured["reviews_changed"] <= 1
    assert {"openvino_int8.xml", "openvino_int8.bin"} <= set(made.json["files"])

    words = ("classify-batch", "-c", data, "-m", "m", "--store", "r.db", "--json")
    auto = vehclass(*words).json
    assert auto["precision"]["used"] == "f32"
    assert "on 12 photos only" in auto["precision"]["why"]
    done = vehclass(*words[:-2], "s.db", "--json", "--precision", "int8")
    assert done.code == 0, done.err
    assert (done.json["classified"], done.json["precision"]["used"]) == (120, "int8")
    assert [row["images"] for row in done.json["summary"]] == [60, 60]
    assert abs(done.json["needs_review"] - auto["needs_review"]) <= 4
