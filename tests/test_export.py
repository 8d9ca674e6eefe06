"""An exported model answers as Keras does, or is not written; what is beside it is enough to use it without vehclass."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT, SAMPLE, Answer, clean_environment
from vehclass.errors import ExportDiffers, ImageError, ModelRefused, UsageError, VehclassError
from vehclass.model import export, publish
from vehclass.model.agreement import TOLERANCE, agreement, made_pictures
from vehclass.model.backbones import BACKBONES
from vehclass.model.classifier import Classifier
from vehclass.model.folder import ModelFolder, open_model
from vehclass.records import Task

TASKS = (Task("a", ("x", "y", "z"), temperature=0.5), Task("b", ("p", "q")))
Vehclass = Callable[..., Answer]


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


# What somebody writes who has only the exported folder: nothing of vehclass in it.
STRANGER = """
import json, sys
from pathlib import Path
import numpy as np

folder, pixels = Path(sys.argv[1]), np.load(sys.argv[2])
about = json.loads((folder / "export.json").read_text())
given, answer = about["input"]["name"], about["output"]["name"]
assert list(pixels.shape[1:]) == about["input"]["shape"][1:]
if about["form"] == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    assert (port.name, port.type, port.shape) == (given, "tensor(uint8)", about["input"]["shape"])
    assert session.get_outputs()[0].shape == about["output"]["shape"]
    logits = session.run([answer], {given: pixels})[0]
elif about["form"] == "openvino":
    import openvino
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = compiled({given: pixels})[answer]
else:
    import tensorflow
    loaded = tensorflow.saved_model.load(str(folder))
    logits = loaded.signatures["serving_default"](**{given: tensorflow.constant(pixels)})[answer].numpy()
found = {}
for task in about["tasks"]:
    start, stop = task["columns"]
    scaled = np.exp(logits[:, start:stop].astype(float) / task["temperature"])
    found[task["name"]] = (scaled / scaled.sum(axis=1, keepdims=True)).tolist()
assert "vehclass" not in sys.modules
print(json.dumps(found))
"""


@pytest.mark.parametrize("form", list(export.FORMS))
def test_a_stranger_gets_the_answers_of_vehclass(form: str, tmp_path: Path, drawn: Path, vehclass: Vehclass) -> None:
    out = tmp_path / "for others"
    done = vehclass("model", "export", SAMPLE, "--format", form, "--out", out, "--photos", drawn / "photos", "--json")
    assert done.code == 0, done.err
    about = done.json
    folder = open_model(SAMPLE)
    assert about["model"] == {"name": "sample", "version": folder.info.version, "made": folder.info.created_at}
    assert about["check"]["pictures"] == "photos"
    assert about["check"]["photos"] >= 24
    assert about["check"]["labels_changed"] == 0
    assert about["check"]["greatest_difference"] <= TOLERANCE
    assert {"vehclass", "keras", "tensorflow"} <= set(about["versions"])
    there = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert there == {*about["files"], "export.json"}
    assert [entry.name for entry in tmp_path.iterdir() if ".part" in entry.name] == []

    width, height = folder.info.input_size
    pixels = made_pictures((width, height), 5)
    np.save(tmp_path / "pixels.npy", pixels)
    asked = subprocess.run(
        [sys.executable, "-c", STRANGER, str(out), str(tmp_path / "pixels.npy")],
        env=clean_environment(CUDA_VISIBLE_DEVICES="-1"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    for number, answer in enumerate(Classifier.open(folder, kind="openvino").classify(pixels)):
        assert not isinstance(answer, ImageError)
        for one in answer:
            assert found[one.task][number] == pytest.approx(one.probabilities, abs=1e-4)


# Networks as training leaves them: statistics of real activations, answers that differ from picture to picture.
MAKE = """
import sys
import keras, numpy as np
from keras import layers
from vehclass.model import network
from vehclass.model.agreement import made_pictures
from vehclass.records import Task
from vehclass.training.novelty import whitening

keras.utils.set_random_seed(1)
if sys.argv[1] == "peculiar":
    # What broke a way to ONNX: constants that are no weights (EfficientNetV2's Normalization), convolutions in groups
    # and GELU (ConvNeXt); and a last column that is no logit.
    pixels = keras.Input((64, 64, 3), dtype="uint8")
    x = layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.05, 0.05, 0.05])(layers.Rescaling(1 / 255)(pixels))
    x = layers.BatchNormalization()(layers.Conv2D(12, 3, 2, padding="same")(x))
    x = layers.Activation("hard_swish")(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Multiply()([x, layers.Conv2D(12, 3, padding="same", groups=12, activation="sigmoid")(x)])
    x = layers.GlobalAveragePooling2D()(layers.LayerNormalization()(layers.Conv2D(24, 1, activation="gelu")(x)))
    novelty = keras.ops.sum(keras.ops.square(layers.Dense(6)(x)), axis=-1, keepdims=True) * 40.0
    made = keras.Model(pixels, layers.Concatenate()([layers.Dense(3)(x), layers.Dense(2)(x), novelty]))
else:
    made = network.build(sys.argv[1], (64, 64), (Task("a", ("x", "y", "z")), Task("b", ("p", "q"))))
    made = network.with_novelty(made, *whitening(np.random.default_rng(4).normal(size=(60, network.stage_means(made).output_shape[1]))))
chance = np.random.default_rng(3)
norms = [layer for layer in made._flatten_layers() if isinstance(layer, layers.BatchNormalization)]
for layer in norms:
    layer.momentum = 0.0
for variable in made.trainable_variables:
    kind, shape = variable.path.split("/")[-1], variable.shape
    if kind == "gamma":  # also what scales a ConvNeXt's branches, which begins near nothing
        variable.assign(chance.uniform(0.6, 1.4, shape))
    elif kind in ("beta", "bias"):
        variable.assign(variable + chance.normal(0, 0.2, shape))
made(made_pictures((64, 64), 40), training=True)
for layer in norms:
    layer.moving_mean.assign(layer.moving_mean * chance.uniform(0.9, 1.1, layer.moving_mean.shape))
    layer.momentum = 0.99
made.save(sys.argv[2])
"""


@pytest.mark.parametrize(
    "network",
    [
        "peculiar",
        *(pytest.param(one, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]) for one in BACKBONES),
    ],
)
def test_every_network_keeps_its_answers_in_every_form(network: str, tmp_path: Path) -> None:
    keras_file, pixels = tmp_path / "made.keras", tmp_path / "pixels.npy"
    environment = clean_environment(KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1")
    subprocess.run([sys.executable, "-c", MAKE, network, str(keras_file)], env=environment, cwd=ROOT, check=True)
    np.save(pixels, made_pictures((64, 64)))
    for form in export.FORMS:
        folder = tmp_path / form
        folder.mkdir()
        place, ours, theirs = folder / export.FORMS[form], tmp_path / "ours.npy", tmp_path / "theirs.npy"
        export.convert(form, keras_file, place, (pixels, ours))
        export.ask(form, place, pixels, theirs)
        trained = np.load(ours)
        assert trained.std(axis=0).min() > 1e-3, "the network answers the same whatever it sees"
        assert agreement(trained, np.load(theirs), TASKS, 0.5)["labels_changed"] == 0, form


class TestAgreement:
    """When two forms of a network count as one."""

    def logits(self, novelty: bool = False) -> np.ndarray:
        made = np.random.default_rng(0).normal(0, 2, (40, 5 + novelty)).astype(np.float32)
        made[:, 5:] = np.abs(made[:, 5:]) * 50
        return made

    def test_the_same(self) -> None:
        found = agreement(self.logits(), self.logits(), TASKS)
        assert found == {
            "photos": 40,
            "labels_changed": 0,
            "greatest_difference": 0.0,
            "greatest_logit_difference": 0.0,
        }

    def test_a_little_noise_is_measured_by_each_tasks_temperature(self) -> None:
        exported = self.logits()
        exported[7, 0] += 1e-4
        found = agreement(self.logits(), exported, TASKS)
        assert 0 < found["greatest_difference"] <= 1e-4
        assert found["greatest_logit_difference"] == pytest.approx(1e-4, rel=0.01)
        with pytest.raises(ExportDiffers, match="0 labels of 40 photos changed, probabilities by up to"):
            agreement(self.logits(), self.logits() * 1.05, TASKS)

    def test_a_changed_label(self) -> None:
        exported = self.logits()
        exported[3, :3] = exported[3, [1, 2, 0]]
        with pytest.raises(ExportDiffers, match="1 labels of 40 photos changed"):
            agreement(self.logits(), exported, TASKS)

    def test_a_label_that_changed_by_little_counts_but_a_tie_does_not(self) -> None:
        trained = np.zeros((1, 5), np.float32)
        exported = trained.copy()
        exported[0, 1] = 1e-6
        assert agreement(trained, exported, TASKS)["labels_changed"] == 0
        trained[0, 0], exported[0, 1] = 1e-3, 1.1e-3
        with pytest.raises(ExportDiffers, match="1 labels of 1 photos"):
            agreement(trained, exported, TASKS)

    def test_what_is_no_number(self) -> None:
        broken = self.logits()
        broken[5, 2] = np.nan
        assert agreement(broken, broken.copy(), TASKS)["labels_changed"] == 0
        for one, other in ((broken, self.logits()), (self.logits(), broken)):
            with pytest.raises(ExportDiffers, match="only one of them answers with numbers"):
                agreement(one, other, TASKS)
        with pytest.raises(ExportDiffers, match="no answer of either is a number"):
            agreement(broken[5:6], broken[5:6], TASKS)

    def test_too_few_or_too_many_numbers(self) -> None:
        for exported in (self.logits()[:, :4], self.logits()[:39], self.logits(novelty=True)):
            with pytest.raises(ExportDiffers, match="5 a photo expected"):
                agreement(self.logits(), exported, TASKS)
        with pytest.raises(ExportDiffers, match="6 a photo expected"):
            agreement(self.logits(), self.logits(), TASKS, 10.0)

    def test_the_novelty_is_compared_by_its_size(self) -> None:
        trained, exported = self.logits(novelty=True), self.logits(novelty=True)
        exported[:, 5] *= 1 + 1e-5
        found = agreement(trained, exported, TASKS, 30.0)
        assert 0 < found["novelty_difference"] < 2e-5
        assert found["greatest_logit_difference"] == 0
        exported[:, 5] *= 1.01
        with pytest.raises(ExportDiffers, match="the novelty by up to 1.0e-02 of it"):
            agreement(trained, exported, TASKS, 30.0)


def test_made_pictures_are_many_kinds_and_always_the_same() -> None:
    first = made_pictures((48, 32))
    assert (first.shape, first.dtype) == ((64, 32, 48, 3), np.uint8)
    assert (first == made_pictures((48, 32))).all()
    assert len({picture.tobytes() for picture in first}) >= 56
    spreads = first.reshape(len(first), -1, 3).std(axis=1).max(axis=1)
    assert (spreads == 0).sum() >= 8  # blank ones
    assert (spreads > 60).sum() >= 16


class TestPublish:
    """Everything appears at once, or nothing does. The child processes are stood in for: they take seconds."""

    @pytest.fixture
    def folder(self) -> ModelFolder:
        """The sample model, as if it had no novelty column."""
        sample = open_model(SAMPLE)
        return replace(sample, info=replace(sample.info, novelty_limit=None))

    @pytest.fixture(autouse=True)
    def child(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Writes a form that answers with `answers`, as Keras does, but for `noise`."""
        answers = np.random.default_rng(1).normal(0, 2, (64, 11)).astype(np.float32)
        says: dict[str, Any] = {"noise": 0.0, "columns": 10, "answers": answers}

        def convert(form: str, keras_file: Path, place: Path, questions: tuple[Path, Path]) -> None:
            place.write_text("a network")
            np.save(questions[1], answers[: len(np.load(questions[0])), : says["columns"]])

        def ask(form: str, place: Path, pixels: Path, logits: Path) -> None:
            assert place.read_text() == "a network"
            np.save(logits, answers[: len(np.load(pixels)), : says["columns"]] * (1 + says["noise"]))

        monkeypatch.setattr(publish, "convert", convert)
        monkeypatch.setattr(publish, "ask", ask)
        return says

    def test_it_stands_in_its_place_with_all_facts(self, folder: ModelFolder, tmp_path: Path) -> None:
        stages: list[str] = []
        done = publish.publish(folder, "onnx", tmp_path / "deep" / "out", stage=stages.append)
        about = json.loads((tmp_path / "deep/out/export.json").read_text())
        assert about == done.about
        assert about["check"]["pictures"] == "made by vehclass"
        assert (about["input"]["name"], about["output"]["name"]) == ("pixels", "logits")
        assert about["input"]["shape"] == ["batch", 160, 160, 3]
        assert about["output"]["shape"] == ["batch", 10]
        for task, said in zip(folder.info.tasks, about["tasks"], strict=True):
            assert (said["name"], tuple(said["labels"])) == (task.name, task.labels)
            assert (said["temperature"], tuple(said["thresholds"])) == (task.temperature, task.thresholds)
        assert [task["columns"] for task in about["tasks"]] == [[0, 2], [2, 5], [5, 10]]
        assert about["novelty"] is None
        assert stages == ["exporting to onnx", "comparing its answers with Keras'"]
        assert names(tmp_path / "deep") == ["out"]
        assert (tmp_path / "deep/out").stat().st_mode & 0o777 == 0o755

    def test_a_novelty_column_is_said_and_compared(
        self, folder: ModelFolder, tmp_path: Path, child: dict[str, Any]
    ) -> None:
        strange = replace(folder, info=replace(folder.info, novelty_limit=30.0))
        child["columns"] = 11
        about = publish.publish(strange, "openvino", tmp_path / "out").about
        assert about["novelty"] == {"column": 10, "limit": 30.0}
        assert about["output"]["shape"] == ["batch", 11]
        assert about["check"]["novelty_difference"] == 0.0
        assert "unlike the training photos" in about["output"]["how"]

    @pytest.mark.parametrize("earlier", [False, True])
    def test_one_that_answers_otherwise_is_not_written(
        self, folder: ModelFolder, tmp_path: Path, child: dict[str, Any], earlier: bool
    ) -> None:
        if earlier:
            publish.publish(folder, "onnx", tmp_path / "out")
            (tmp_path / "out" / "mark").touch()
        child["noise"] = 0.05
        with pytest.raises(ExportDiffers, match="of 64 photos"):
            publish.publish(folder, "onnx", tmp_path / "out", overwrite=True)
        assert names(tmp_path) == (["out"] if earlier else [])
        assert (tmp_path / "out" / "mark").exists() == earlier

    def test_an_export_is_replaced_on_demand_only(self, folder: ModelFolder, tmp_path: Path) -> None:
        publish.publish(folder, "onnx", tmp_path / "out")
        (tmp_path / "out" / "mark").touch()
        with pytest.raises(UsageError, match="add --overwrite"):
            publish.publish(folder, "onnx", tmp_path / "out")
        publish.publish(folder, "openvino", tmp_path / "out", overwrite=True)
        assert names(tmp_path / "out") == ["export.json", "model.xml"]
        assert names(tmp_path) == ["out"]

    def test_an_export_comes_back_when_it_cannot_be_replaced(
        self, folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish.publish(folder, "onnx", tmp_path / "out")
        real = Path.rename

        def rename(self: Path, target: Path) -> Path:
            if self.name == "draft":
                raise OSError(28, "No space left on device")
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(VehclassError, match="No space left on device"):
            publish.publish(folder, "openvino", tmp_path / "out", overwrite=True)
        assert names(tmp_path / "out") == ["export.json", "model.onnx"]
        assert names(tmp_path) == ["out"]

    def test_what_is_no_export_is_never_replaced(self, folder: ModelFolder, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "photos").mkdir()
        (tmp_path / "link").symlink_to("nowhere")
        shutil.copytree(SAMPLE, tmp_path / "model")
        for name in ("file", "photos", "link", "model"):
            with pytest.raises(UsageError, match="is no export"):
                publish.publish(folder, "onnx", tmp_path / name, overwrite=True)
        with pytest.raises(UsageError, match="names a folder"):
            publish.publish(folder, "onnx", tmp_path / "car.onnx")
        with pytest.raises(UsageError, match="Nothing can be written at"):
            publish.publish(folder, "onnx", tmp_path / "file" / "out")

    def test_a_keras_file_that_is_not_plain_is_never_opened(self, folder: ModelFolder, tmp_path: Path) -> None:
        evil = Path(shutil.copytree(SAMPLE, tmp_path / "evil"))
        (evil / "model.keras").write_bytes(b"\x80\x04\x95")
        with pytest.raises(ModelRefused, match="not a Keras 3 file"):
            publish.publish(replace(folder, path=evil), "onnx", tmp_path / "out")
        assert names(tmp_path) == ["evil"]


def test_a_form_whose_packages_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else object())
    export.require("openvino")
    with pytest.raises(UsageError, match=r"needs tf2onnx, which is not installed. .*pip install 'vehclass\[onnx\]'"):
        export.require("onnx")
    with pytest.raises(UsageError, match="There is no format 'tflite'; choose one of openvino, onnx, saved_model"):
        export.require("tflite")


def test_what_the_child_dies_of_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "broken.keras").write_bytes(b"no network")
    with pytest.raises(VehclassError, match=r"could not be exported to openvino: \w+: .*broken.keras") as raised:
        export.export_openvino(tmp_path / "broken.keras", tmp_path / "out.xml")
    assert "\n" not in str(raised.value)
    assert names(tmp_path) == ["broken.keras"]


def test_the_command_refuses_before_it_works(tmp_path: Path, vehclass: Vehclass) -> None:
    model = Path(shutil.copytree(SAMPLE, tmp_path / "mine"))
    (tmp_path / "mine-onnx").mkdir()
    (tmp_path / "empty").mkdir()
    for words, says in (
        (["--format", "onnx"], "mine-onnx is there and is no export"),  # where it goes when nothing is said
        (["--format", "tflite"], "There is no format 'tflite'"),
        (["--format", "openvino", "--photos", "empty"], "No photo in empty can be decoded"),
        (["--format", "openvino", "--photos", "nowhere"], "there is no such folder"),
    ):
        answer = vehclass("model", "export", model, *words)
        assert (answer.code, says in answer.err) == (2, True), answer.err
    assert names(tmp_path) == ["empty", "mine", "mine-onnx"]
