"""A model folder that an earlier vehclass made still loads and still answers the same (tests/data/README.md)."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT, Answer, clean_environment
from vehclass.errors import ImageError, ModelRefused
from vehclass.model.classifier import Classifier
from vehclass.model.folder import FORMAT_VERSION, READABLE_FORMATS, open_model

ARCHIVE = ROOT / "tests" / "data" / "model-format-1.zip"
SIDE = 32


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's content; to be read only."""
    folder = tmp_path_factory.mktemp("format1")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model that a test may spoil."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old")
    return tmp_path / "old" / "model"


def pictures() -> np.ndarray:
    """The five pictures that the answers were recorded for: uint8 [5, 32, 32, 3]. Not to be changed."""
    y, x, c = np.meshgrid(np.arange(SIDE), np.arange(SIDE), np.arange(3), indexing="ij")
    planes = [
        0 * x + 90 + 40 * c,
        x * 8 + c * 0,
        (y * 5 + c * 60) % 256,
        ((x // 4 + y // 4) % 2) * (200 - 50 * c),
        np.where((x - 16) ** 2 + (y - 18) ** 2 < 90, 220 - 80 * c, 60 + 3 * y),
    ]
    return np.stack(planes).clip(0, 255).astype(np.uint8)


# What a user of the library does, in a process of its own: Keras' backend is chosen once a process.
ANSWER = (
    "import json, sys\n"
    "from pathlib import Path\n"
    "from tests.test_old_models import pictures\n"
    "from vehclass.model.classifier import Classifier\n"
    "from vehclass.model.folder import open_model\n"
    "classifier = Classifier.open(open_model(Path(sys.argv[1])), kind=sys.argv[2])\n"
    "print(json.dumps([[(p.task, p.label, p.needs_review, p.probabilities) for p in one]\n"
    "                  for one in classifier.classify(pictures())]))"
)


def test_it_is_a_format_that_is_read_and_no_longer_written(unpacked: Path) -> None:
    facts = json.loads((unpacked / "model" / "model.json").read_text())
    assert facts["format_version"] == 1
    assert FORMAT_VERSION > 1
    assert 1 in READABLE_FORMATS
    info = open_model(unpacked / "model").info
    assert [task.name for task in info.tasks] == ["view", "condition", "body"]
    assert info.novelty_limit is None
    for task, said in zip(info.tasks, facts["tasks"], strict=True):
        assert task.thresholds == (said["threshold"],) * len(said["labels"])


@pytest.mark.parametrize("runtime", ["openvino", "keras"])
def test_it_answers_as_it_did(unpacked: Path, runtime: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(unpacked / "model"), runtime],
        env=clean_environment(CUDA_VISIBLE_DEVICES="-1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    expected = json.loads((unpacked / "expected.json").read_text())
    answers = json.loads(done.stdout)
    assert len(answers) == len(expected) == 5
    for answer, recorded in zip(answers, expected, strict=True):
        assert [task for task, *_ in answer] == list(recorded)
        for task, label, needs_review, probabilities in answer:
            assert label == recorded[task]["label"]
            assert needs_review == recorded[task]["needs_review"]
            assert probabilities == pytest.approx(recorded[task]["probabilities"], abs=1e-4)


def test_the_recorded_answers_can_tell_one_picture_from_another(unpacked: Path) -> None:
    """Else a network that no longer looks at its input would pass."""
    (answers,) = [Classifier.open(open_model(unpacked / "model"), kind="openvino").classify(pictures()[::-1].copy())]
    expected = json.loads((unpacked / "expected.json").read_text())
    apart = []
    for answer, recorded in zip(answers, expected, strict=True):
        assert not isinstance(answer, ImageError)
        apart += [
            abs(np.array(one.probabilities) - np.array(recorded[one.task]["probabilities"])).max() for one in answer
        ]
    assert max(apart) > 0.05


def test_the_commands_work_on_it(unpacked: Path, drawn: Path, vehclass: Callable[..., Answer]) -> None:
    model = unpacked / "model"
    shown = vehclass("model", "show", model)
    assert (shown.code, "every file is as it was made" in shown.out) == (0, True), shown.err
    assert vehclass("model", "show", model, "--json").json["format_version"] == 1
    ran = vehclass("classify-batch", "-c", drawn, "--include", "photos/0*", "-m", model, "--json")
    assert ran.code in (0, 3), ran.err
    listed = vehclass("results", "list", "--json")
    version = open_model(model).info.version
    assert listed.code == 0
    assert version in listed.out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda facts: facts["tasks"][0].update(temperature=9.0), "changed after the model was made"),
        # A folder cannot be made to look newer, and its answers be changed, by what only format 2 knows.
        (lambda facts: facts.update(format_version=2), "changed after the model was made"),
        (lambda facts: facts["tasks"][0].update(label_thresholds=[0.0, 0.0]), "changed after the model was made"),
        (lambda facts: facts.update(novelty={"limit": 0.0}), "changed after the model was made"),
    ],
)
def test_changed_facts_are_refused(folder: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    facts = json.loads((folder / "model.json").read_text())
    change(facts)
    (folder / "model.json").write_text(json.dumps(facts))
    with pytest.raises(ModelRefused, match=says):
        open_model(folder)


@pytest.mark.parametrize("name", ["model.keras", "openvino.bin"])
def test_a_changed_file_is_refused(folder: Path, name: str, vehclass: Callable[..., Answer]) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    answer = vehclass("model", "show", folder)
    assert (answer.code, f"was not loaded: {name} is not the file that was trained" in answer.err) == (2, True)
