"""A model folder is refused before anything in it is deserialised, when it is not what was trained."""

import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SAMPLE, Answer, clean_environment
from vehclass.errors import ImageError, ModelNotFound, ModelRefused, UsageError
from vehclass.imaging import decode
from vehclass.model import runtime as runtime_module
from vehclass.model.accelerated import best_batch
from vehclass.model.classifier import Classifier, answers, probabilities
from vehclass.model.folder import check_keras_file, open_model
from vehclass.model.runtime import KerasRuntime, OpenVinoRuntime, cores_are_alike, is_out_of_memory
from vehclass.records import Task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLE, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads((folder / "model.json").read_text())
    change(facts)
    (folder / "model.json").write_text(json.dumps(facts))


def test_the_sample_is_whole_and_small() -> None:
    model = open_model(SAMPLE)
    assert [task.name for task in model.info.tasks] == ["view", "condition", "body"]
    assert sum(file.stat().st_size for file in SAMPLE.iterdir()) < 5_000_000
    check_keras_file(model.file("model.keras"))


@pytest.mark.parametrize("name", ["model.keras", "openvino.xml", "openvino.bin"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "swapped"])
def test_a_changed_file_is_refused(folder: Path, name: str, how: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(data[:-100])
    elif how == "gone":
        file.unlink()
    else:
        shutil.copy(folder / "model.json", file)
    with pytest.raises(ModelRefused, match=name):
        open_model(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda facts: facts["tasks"][0].update(temperature=9.0), "changed after the model was made"),
        (lambda facts: facts["tasks"][1]["labels"].reverse(), "changed after the model was made"),
        (lambda facts: facts.update(input_size=[8, 8]), "changed after the model was made"),
        (lambda facts: facts.update(format_version=99), "not of a format"),
        (lambda facts: facts.pop("tasks"), "lacks what it should say"),
        (lambda facts: facts["tasks"][0].update(threshold=float("nan")), "lacks what it should say"),
        (lambda facts: facts["tasks"][0]["labels"].append("\ud800"), "lacks what it should say"),
        (lambda facts: facts["files"].update({"../secret": "00"}), "a file outside the folder"),
    ],
)
def test_changed_facts_are_refused(folder: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    edit(folder, change)
    with pytest.raises(ModelRefused, match=says):
        open_model(folder)


def test_hdf5_is_refused_by_its_bytes(folder: Path) -> None:
    (folder / "model.keras").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(ModelRefused, match="HDF5"):
        open_model(folder)


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, says in (
        (tmp_path / "missing", "no such folder"),
        (tmp_path, "no model.json"),
        (tmp_path / "file", "a file"),
    ):
        with pytest.raises(ModelNotFound, match=says):
            open_model(path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ModelRefused, match="cannot be read"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    "part",
    [
        {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "..."}, "registered_name": None},
        {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {}, "registered_name": None},
        {
            "module": "keras.layers",
            "class_name": "TFSMLayer",
            "config": {"filepath": "/tmp/x"},
            "registered_name": None,
        },
        {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "function"},
        {"module": "os", "class_name": "system", "config": {}, "registered_name": None},
        {"module": "keras.utils", "class_name": "get_file", "config": {}, "registered_name": None},
        {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": "evil>Dense"},
    ],
)
def test_a_keras_file_with_code_is_refused_before_keras_sees_it(tmp_path: Path, part: dict[str, Any]) -> None:
    with zipfile.ZipFile(SAMPLE / "model.keras") as whole, zipfile.ZipFile(tmp_path / "evil.keras", "w") as evil:
        for name in whole.namelist():
            data = whole.read(name)
            if name == "config.json":
                config = json.loads(data)
                config["config"]["layers"].append(part)
                data = json.dumps(config).encode()
            evil.writestr(name, data)
    with pytest.raises(ModelRefused, match="not allowed"):
        check_keras_file(tmp_path / "evil.keras")


def test_a_keras_file_with_more_in_it_is_refused(tmp_path: Path) -> None:
    shutil.copy(SAMPLE / "model.keras", tmp_path / "more.keras")
    with zipfile.ZipFile(tmp_path / "more.keras", "a") as archive:
        archive.writestr("../../escape.py", "import os")
    with pytest.raises(ModelRefused, match="not a plain Keras 3 file"):
        check_keras_file(tmp_path / "more.keras")
    (tmp_path / "pickle.keras").write_bytes(b"\x80\x04\x95")
    with pytest.raises(ModelRefused, match="not a Keras 3 file"):
        check_keras_file(tmp_path / "pickle.keras")


def test_a_refused_model_stops_the_command(folder: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    (folder / "openvino.bin").write_bytes(b"\0")
    answer = vehclass("classify-batch", "-c", ".", "-m", folder)
    assert (answer.code, "was not loaded: openvino.bin is not the file that was trained" in answer.err) == (2, True)
    assert not (tmp_path / "vehclass.db").exists()


class TestAnswers:
    """From logits to predictions."""

    TASKS = (Task("a", ("x", "y", "z"), temperature=2.0, threshold=0.6), Task("b", ("p", "q")))

    def test_each_task_has_its_own_softmax(self) -> None:
        (one,) = answers(np.array([[2.0, 0.0, 0.0, 0.0, 5.0]], np.float32), self.TASKS)
        assert not isinstance(one, ImageError)
        first, second = one
        weights = np.exp([1.0, 0.0, 0.0])
        assert first.probabilities == pytest.approx(tuple(weights / weights.sum()))
        assert (first.label, first.needs_review) == ("x", True)
        assert (second.label, second.needs_review) == ("q", False)
        assert sum(first.probabilities) == pytest.approx(1)

    def test_what_is_not_finite_is_an_error_for_its_picture_only(self) -> None:
        logits = np.zeros((3, 5), np.float32)
        logits[1, 4] = np.nan
        logits[2, 0] = np.inf
        good, bad, worse = answers(logits, self.TASKS)
        assert not isinstance(good, ImageError)
        assert isinstance(bad, ImageError)
        assert isinstance(worse, ImageError)
        assert bad.code == "not_finite"

    def test_large_logits_do_not_overflow(self) -> None:
        assert probabilities(np.array([[1e4, -1e4]], np.float32), 0.5).tolist() == [[1.0, 0.0]]


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    """Alone, in a batch, first or last: the same probabilities, so that a killed night ends like a quiet one."""
    folder = open_model(SAMPLE)
    classifier = Classifier.open(folder, kind="openvino", batch_size=8, threads=2)
    width, height = folder.info.input_size
    pixels = np.random.default_rng(1).integers(0, 255, (8, height, width, 3), np.uint8)
    together = classifier.classify(pixels)
    alone = [classifier.classify(pixels[n : n + 1])[0] for n in range(8)]
    turned = classifier.classify(pixels[::-1].copy())[::-1]
    for one, two, three in zip(together, alone, turned, strict=True):
        assert not isinstance(one, ImageError)
        assert not isinstance(two, ImageError)
        assert not isinstance(three, ImageError)
        for a, b, c in zip(one, two, three, strict=True):
            assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)
            assert a.probabilities == pytest.approx(c.probabilities, abs=1e-6)


def test_first_calls_from_several_threads_do_not_wait_for_each_other_for_ever() -> None:
    """Twenty processes whose lanes all begin at the same moment."""
    code = (
        "import sys, threading\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from vehclass.model.classifier import Classifier\n"
        "from vehclass.model.folder import open_model\n"
        "classifier = Classifier.open(open_model(Path(sys.argv[1])), kind='openvino', threads=2, batch_size=2)\n"
        "pixels, start = np.zeros((2, 160, 160, 3), np.uint8), threading.Barrier(4)\n"
        "lanes = [threading.Thread(target=lambda: (start.wait(), classifier.classify(pixels))) for _ in range(4)]\n"
        "[lane.start() for lane in lanes]; [lane.join() for lane in lanes]; print('done')"
    )
    for _ in range(20):
        done = subprocess.run(
            [sys.executable, "-c", code, str(SAMPLE)],
            capture_output=True,
            text=True,
            timeout=30,
            env=clean_environment(),
            check=True,
        )
        assert done.stdout == "done\n"


@pytest.mark.parametrize(
    ("speeds", "room", "best"),
    [
        ({32: 1000, 64: 1900, 128: 3000, 256: 3100, 512: 3100}, 1024, 128),
        ({32: 100, 64: 100}, 1024, 32),
        ({32: 1, 64: 2, 128: 4, 256: 8, 512: 16, 1024: 32}, 4096, 1024),
        ({32: 1, 64: 2, 128: 4}, 64, 64),
    ],
)
def test_a_batch_is_as_large_as_pays(speeds: dict[int, float], room: int, best: int) -> None:
    def seconds_of(count: int) -> float:
        if count > room:
            raise RuntimeError("CUDA out of memory")
        return count / speeds[count]

    assert best_batch(seconds_of, is_out_of_memory) == best


def test_keras_in_bfloat16_answers_alike(drawn: Path) -> None:
    """As a GPU would run it: cast and prepared in the network, 16 bits inside, 32 bits out."""
    folder = open_model(SAMPLE)
    pixels = np.stack(
        [decode(file.read_bytes(), folder.info.input_size)[0] for file in sorted(drawn.rglob("*.jpg"))[:16]]
    )
    f32, bf16 = (KerasRuntime(folder, 16, precision) for precision in ("f32", "bf16"))
    assert (f32.precision.name, bf16.precision.name) == ("f32", "bf16")
    there, here = f32.logits(pixels), bf16.logits(pixels)
    assert here.dtype == np.float32
    assert 0 < np.abs(there - here).max() < 0.3
    assert np.abs(there - here).mean() < 0.03
    with pytest.raises(UsageError, match="int8"):
        KerasRuntime(folder, 16, "int8")


def test_two_threads_at_a_time_get_their_own_answers(drawn: Path) -> None:
    runtime = KerasRuntime(open_model(SAMPLE), 4)
    runtime._turns = threading.BoundedSemaphore(2)
    files = sorted(drawn.rglob("*.jpg"))[:8]
    pixels = [decode(file.read_bytes(), open_model(SAMPLE).info.input_size)[0][None] for file in files]
    alone = [runtime.logits(one) for one in pixels]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            if not np.allclose(runtime.logits(pixels[number]), alone[number], atol=1e-4):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def of_threads(work: Callable[[int], object], count: int) -> None:
    """Runs `work(number)` in so many threads at once; what one of them raises is raised here."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


@pytest.mark.parametrize(
    ("alike", "room", "shared"),
    [(True, 2**30, False), (False, 2**30, True), (True, 2**20, True)],
    ids=["cores alike", "cores of two kinds", "no room for copies"],
)
def test_openvino_in_many_threads(
    alike: bool, room: int, shared: bool, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets its own answers, the same as alone, bit by bit."""
    monkeypatch.setattr(runtime_module, "cores_are_alike", lambda: alike)
    monkeypatch.setattr(runtime_module, "MOST_OF_COPIES", room)
    folder = open_model(SAMPLE)
    runtime = OpenVinoRuntime(folder, 4, 4)
    pixels = [decode(file.read_bytes(), folder.info.input_size)[0][None] for file in sorted(drawn.rglob("*.jpg"))[:6]]
    alone = [OpenVinoRuntime(folder, 4, 1).logits(one) for one in pixels]

    def work(number: int) -> None:
        for _ in range(20):
            assert (runtime.logits(pixels[number]) == alone[number]).all()

    of_threads(work, 6)  # more than it was told of: the fifth and the sixth have answers as well
    made = len(runtime._compiled)
    assert made == 1 if shared else 1 < made <= 6


def test_no_room_for_another_thread_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "cores_are_alike", lambda: True)
    runtime = OpenVinoRuntime(open_model(SAMPLE), 1, 2)

    def full() -> None:
        raise RuntimeError("bad allocation")

    monkeypatch.setattr(runtime, "_compile", full)
    runtime._idle.clear()
    with pytest.raises(UsageError, match=r"once more, for another thread \(bad allocation\). Set fewer threads"):
        runtime.logits(np.zeros((1, 160, 160, 3), np.uint8))


def test_where_cores_are_alike_a_thread_computes_by_itself() -> None:
    """Handed to threads of OpenVINO's, a batch waits where two of them are on one core."""
    if not cores_are_alike():
        pytest.skip("the cores of this machine are of two kinds, or in two nodes")
    folder = open_model(SAMPLE)
    runtime = OpenVinoRuntime(folder, 16, 2)
    width, height = folder.info.input_size
    pixels = np.zeros((16, height, width, 3), np.uint8)
    runtime.logits(pixels)
    here, everywhere = time.thread_time(), time.process_time()
    for _ in range(10):
        runtime.logits(pixels)
    assert time.thread_time() - here > 0.8 * (time.process_time() - everywhere)


@pytest.mark.parametrize(
    ("there", "alike"),
    [
        (["system/cpu"], True),
        (["system/cpu", "system/node/node0", "system/node/power"], True),
        (["system/cpu", "system/node/node0", "system/node/node1"], False),
        (["system/cpu", "system/node/node0", "cpu_core", "cpu_atom"], False),
        (["system/cpu/cpu0=1024", "system/cpu/cpu1=1024"], True),
        (["system/cpu/cpu0=1024", "system/cpu/cpu1=446"], False),
        ([], False),
    ],
)
def test_cores_of_one_kind_in_one_node(there: list[str], alike: bool, tmp_path: Path) -> None:
    for folder in there:
        name, _, capacity = folder.partition("=")
        (tmp_path / name).mkdir(parents=True)
        if capacity:
            (tmp_path / name / "cpu_capacity").write_text(f"{capacity}\n")
    assert cores_are_alike(tmp_path) is alike


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    """A network that has room for five pictures: all answers come, in order, and later batches begin smaller."""
    asked: list[int] = []

    class Cramped:
        def predict_on_batch(self, pixels: np.ndarray) -> np.ndarray:
            asked.append(len(pixels))
            if len(pixels) > 5:
                raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
            return pixels[:, 0, 0, :1].astype(np.float32)

    runtime = object.__new__(KerasRuntime)
    runtime._model, runtime._step, runtime._turns = Cramped(), 16, threading.BoundedSemaphore(2)
    pixels = np.arange(14, dtype=np.uint8).reshape(14, 1, 1, 1).repeat(3, axis=3)
    assert runtime.logits(pixels)[:, 0].tolist() == list(range(14))
    assert asked == [16, 8, 4, 4, 4, 4]
    runtime.logits(pixels[:3])
    assert asked[6:] == [4]

    class Broken:
        def predict_on_batch(self, pixels: np.ndarray) -> np.ndarray:
            raise RuntimeError("the device fell off the bus")

    runtime._model = Broken()
    with pytest.raises(RuntimeError, match="fell off"):
        runtime.logits(pixels)
