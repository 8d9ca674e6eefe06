"""How a network is fitted: to the same end after a kill, within a time, from weights, on what the disk allows."""

import json
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import VEHCLASS, Answer, clean_environment
from tests.test_train import folders
from vehclass.errors import UsageError
from vehclass.model.backbones import BACKBONES
from vehclass.model.folder import check_keras_file
from vehclass.records import Task
from vehclass.training import novelty
from vehclass.training.checkpoint import State, Unfinished
from vehclass.training.dataset import read_catalogue
from vehclass.training.fit import _network, _recipe, prepare
from vehclass.training.fitting import Fitting
from vehclass.training.pace import Pace, rate_at, usual_epochs
from vehclass.training.plan import Listener, Plan

QUICK = ("--input-size", "32", "--batch-size", "16", "--precision", "float32")
COLOURS = (Task("colour", ("blue", "red")),)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("coloured"), {"red": 60, "blue": 60})


class TestPace:
    """How far, how fast."""

    def test_the_rate_rises_and_falls(self) -> None:
        rates = [rate_at(at / 100) for at in range(101)]
        top = int(np.argmax(rates))
        assert rates[top] == pytest.approx(1, abs=0.01)
        assert 5 <= top <= 9
        assert rates[0] == pytest.approx(0.05)
        assert rates[-1] == pytest.approx(0, abs=1e-9)
        assert all(a > b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))

    def test_the_clock_ends_what_steps_would_not(self) -> None:
        now = 0.0
        pace = Pace(1000, 60.0, spent=15.0, clock=lambda: now)
        assert pace.progress(10) == pytest.approx(0.25)
        now = 15.0
        assert pace.progress(10) == pytest.approx(0.5)
        assert pace.left(10) == pytest.approx(30)
        assert pace.progress(700) == pytest.approx(0.7)  # steps may be ahead of the clock
        now = 50.0
        assert pace.progress(10) == 1.0
        assert Pace(1000, None).progress(500) == 0.5

    def test_few_photos_are_seen_often(self) -> None:
        epochs = [usual_epochs(photos, "balanced") for photos in (100, 2_500, 60_000, 10_000_000)]
        assert epochs == sorted(epochs, reverse=True)
        assert epochs == [250, 50, 10, 3]
        assert usual_epochs(2_500, "quick") < 50 < usual_epochs(2_500, "best")


class TestResume:
    """Going on where it was."""

    @pytest.mark.timeout(280)
    def test_a_killed_training_ends_as_an_undisturbed_one(
        self, coloured: Path, tmp_path: Path, vehclass: Callable[..., Answer]
    ) -> None:
        words = ["train", coloured, "--task", "colour", "--epochs", "6", "--augment", "strong", *QUICK]
        whole = vehclass(*words, "--out", "whole", timeout=120)
        assert whole.code == 0, whole.err
        killed = subprocess.Popen(
            [*VEHCLASS, *map(str, words), "--out", "killed"],
            cwd=tmp_path,
            env=clean_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert killed.stderr is not None
        for line in killed.stderr:
            if line.startswith("epoch   3/"):
                break
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        killed.stderr.close()
        assert not (tmp_path / "killed").exists()
        other = vehclass(*words, "--out", "killed", "--resume", "--learning-rate", "0.5")
        assert (other.code, "other options" in other.err) == (2, True)
        again = vehclass(*words, "--out", "killed", "--resume", timeout=120)
        assert again.code == 0, again.err
        assert re.search(r"going on after epoch [345]\n", again.err)
        assert list(tmp_path.glob(".killed*")) == []
        facts = [json.loads((tmp_path / name / "model.json").read_text()) for name in ("whole", "killed")]
        histories = [[{k: v for k, v in row.items() if k != "seconds"} for row in one["history"]] for one in facts]
        assert histories[0] == histories[1]
        assert facts[0]["files"]["openvino.bin"] == facts[1]["files"]["openvino.bin"]

    def test_ctrl_c_keeps_the_epochs_and_says_how_to_go_on(self, coloured: Path, tmp_path: Path) -> None:
        words = [*VEHCLASS, "train", str(coloured), "--out", "stopped", "--epochs", "500", *QUICK]
        running = subprocess.Popen(words, cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE, text=True)
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("epoch   1/"):
                break
        second = subprocess.run(
            words, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False
        )
        assert (second.returncode, "Another training is making" in second.stderr) == (2, True)
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
        assert running.wait(timeout=30) == 130
        assert "run the same command with --resume" in rest
        assert "Traceback" not in rest
        assert (tmp_path / ".stopped.training" / "state.npz").exists()
        running.stderr.close()

    def test_a_torn_checkpoint_is_never_seen(self, tmp_path: Path) -> None:
        unfinished = Unfinished(tmp_path / "m", {"a": 1})
        with unfinished.held(resume=False) as state:
            assert state is None
            unfinished.save(State(epoch=1, best=0), [np.arange(3)], [np.arange(2)])
            (unfinished.folder / "state.npz.part").write_bytes(b"half")
            before = (unfinished.folder / "state.npz").read_bytes()
            raise_at_end = pytest.raises(UsageError)
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            try:
                with raise_at_end as full:
                    unfinished.save(State(epoch=2), [np.zeros(100_000)], None)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            assert "is full" in str(full.value)
            assert (unfinished.folder / "state.npz").read_bytes() == before
        assert not unfinished.folder.exists()


def fitted(plan: Plan, listener: Listener | None = None) -> tuple[Any, State]:
    """The network and the state of a training without its export."""
    import keras

    material = prepare(plan, read_catalogue(plan.data, plan.task_name), 32, Listener())
    keras.utils.set_random_seed(plan.seed)
    recipe = _recipe(plan, material.catalogue.tasks, material.dataset, [], 0.0)
    network = _network(plan, material.catalogue.tasks, 32, recipe.policy)
    unfinished = Unfinished(plan.out, {})
    with unfinished.held(resume=False) as state:
        fitting = Fitting(
            network, material.catalogue.tasks, material.dataset, recipe, unfinished, listener or Listener()
        )
        return network, fitting.run(state)


def test_the_same_seed_gives_the_same_model(coloured: Path, tmp_path: Path) -> None:
    plan = Plan(coloured, tmp_path / "m", epochs=2, batch_size=16, precision="float32")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    # Of several trainings in one process the first may differ in the last bits; each process has a first one.
    _, one, same, other = (
        np.asarray(fitted(replace(plan, seed=seed))[0].predict_on_batch(pixels), np.float32) for seed in (5, 5, 5, 6)
    )
    assert (one == same).all()
    assert (one != other).any()


def test_a_time_limit_is_kept_and_used(coloured: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    began = time.monotonic()
    done = vehclass("train", coloured, "--out", "m", "--time-limit", "20s", *QUICK, timeout=120)
    took = time.monotonic() - began
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "m" / "model.json").read_text())
    assert 5 < facts["training_seconds"] < 20
    assert took < 55  # export and figures may take longer than thought on a busy machine
    rates = [row["learning_rate"] for row in facts["history"]]
    assert rates[-1] < 0.2 * max(rates)  # the schedule came to its end
    short = vehclass("train", coloured, "--out", "n", "--time-limit", "0.01s", *QUICK)
    assert (short.code, "--time-limit" in short.err) == (2, True)
    assert list(tmp_path.glob(".n*")) == []


def test_training_starts_from_a_model_of_ours(coloured: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    """Hardly any training is enough from a model that knows the colours, and not from nothing."""
    first = vehclass("train", coloured, "--out", "first", "--epochs", "12", *QUICK, timeout=120)
    assert first.code == 0, first.err
    plan = Plan(coloured, tmp_path / "m", epochs=1, batch_size=16, learning_rate=1e-5, precision="float32", seed=1)
    said: list[str] = []

    class Notes(Listener):
        def stage(self, what: str) -> None:
            said.append(what)

    _, started = fitted(replace(plan, weights=str(tmp_path / "first")), Notes())
    assert any(text.startswith("fitting the heads to") for text in said)
    _, nothing = fitted(plan)
    assert started.history[0]["val_loss"] < nothing.history[0]["val_loss"] / 2


def test_no_disk_no_half_model(coloured: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [*VEHCLASS, "train", str(coloured), "--out", "m", "--epochs", "1", *QUICK],
        cwd=tmp_path,
        env=clean_environment(),
        preexec_fn=small_files,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "has no room for" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_device_out_of_memory_gets_half_the_batch(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vehclass.training import fitting

    said: list[str] = []

    class Notes(Listener):
        def stage(self, what: str) -> None:
            said.append(what)

    class Greedy(fitting.Batches):
        def __getitem__(self, index: int) -> Any:
            if self._batch_size > 8:
                raise RuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")
            return super().__getitem__(index)

    monkeypatch.setattr(fitting, "Batches", Greedy)
    _, state = fitted(Plan(coloured, tmp_path / "m", epochs=2, batch_size=32, precision="float32"), Notes())
    assert (state.batch_size, state.epoch) == (8, 2)
    assert [text[-2:].strip() for text in said] == ["16", "8"]


# Keras asks NumPy for a copy in a way that TensorFlow's variables do not know yet.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("backbone", ["small", "mobilenet_v3_small", "convnext_tiny", "resnet50"])
def test_backbones_are_saved_as_what_is_allowed(backbone: str, tmp_path: Path) -> None:
    from vehclass.model.network import build, summary_model, take_weights, with_novelty

    network = build(backbone, (32, 32), (Task("a", ("x", "y")), Task("b", ("p", "q", "r"))))
    prototypes = novelty.prototypes(
        np.random.default_rng(0).normal(size=(40, summary_model(network).output.shape[1])).astype(np.float32), 0
    )
    whole = with_novelty(network, prototypes)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert np.asarray(whole.predict_on_batch(pixels)).shape == (2, 6)
    whole.save(tmp_path / "model.keras")
    check_keras_file(tmp_path / "model.keras")
    other = build(backbone, (32, 32), COLOURS)
    take_weights(other, whole)
    assert all(
        (a == b).all()
        for a, b in zip(summary_model(network).get_weights(), summary_model(other).get_weights(), strict=True)
    )


def test_every_backbone_is_one_that_can_be_built() -> None:
    from vehclass.model.network import MAKERS

    assert set(MAKERS) == set(BACKBONES)


def test_weights_that_cannot_be_had(coloured: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    """Behind a proxy that nobody listens at, as on a machine without the network."""
    answer = vehclass(
        "train", coloured, "--out", "m", "--backbone", "mobilenet_v3_small", "--weights", "imagenet", *QUICK,
        HOME=str(tmp_path / "home"), https_proxy="http://127.0.0.1:9", timeout=200,
    )  # fmt: skip
    assert answer.code == 2, answer.err
    assert "cannot be downloaded from here" in answer.err
    assert list(tmp_path.glob("m")) + list(tmp_path.glob(".m*")) == []


class TestNovelty:
    """What is unlike the photos that were learnt from."""

    def test_prototypes_lie_where_the_photos_are(self) -> None:
        rng = np.random.default_rng(3)
        centres = rng.normal(size=(5, 40)).astype(np.float32)
        features = (np.repeat(centres, 100, axis=0) + rng.normal(0, 0.05, (500, 40))).astype(np.float32)
        found = novelty.prototypes(features, 0)
        assert np.linalg.norm(found, axis=0) == pytest.approx(np.ones(found.shape[1]), abs=1e-5)
        near = (features / np.linalg.norm(features, axis=1, keepdims=True)) @ found
        assert near.max(axis=1).min() > 0.95
        strange = rng.normal(size=(200, 40))
        strange /= np.linalg.norm(strange, axis=1, keepdims=True)
        assert np.median((strange @ found).max(axis=1)) < 0.5

    def test_the_limit_keeps_nearly_all(self) -> None:
        at = novelty.limit(np.linspace(0, 1, 1000, dtype=np.float32))
        assert 0.975 < at < 0.985

    def test_the_network_says_how_strange_a_picture_is(self) -> None:
        from vehclass.model.network import build, summary_model, with_novelty

        network = build("small", (32, 32), COLOURS)
        pixels = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), np.uint8)
        features = np.asarray(summary_model(network).predict_on_batch(pixels))
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        column = np.asarray(with_novelty(network, unit[:3].T.copy()).predict_on_batch(pixels))[:, -1]
        assert column == pytest.approx(1 - (unit @ unit[:3].T).max(axis=1), abs=1e-4)
        assert column[:3] == pytest.approx(0, abs=1e-4)


class TestHeads:
    """Heads on frozen features, in one step."""

    @pytest.mark.parametrize("photos", [60, 600])
    def test_a_linear_rule_is_learnt_by_photos_or_by_features(self, photos: int) -> None:
        from vehclass.training.heads import fit_head

        rng = np.random.default_rng(4)
        rule = rng.normal(size=(200, 3))
        features = rng.normal(size=(photos + 1000, 200)).astype(np.float32)
        features[:, :20] *= 50  # of another range, and no more important for that
        truth = ((features / features.std(axis=0)) @ rule).argmax(axis=1)
        kernel, bias = fit_head(features[:photos], np.eye(3, dtype=np.float32)[truth[:photos]])
        right = ((features @ kernel + bias).argmax(axis=1) == truth)[photos:].mean()
        assert right > {60: 0.42, 600: 0.7}[photos]

    def test_both_ways_give_the_same(self) -> None:
        from vehclass.training.heads import fit_head

        rng = np.random.default_rng(5)
        features = rng.normal(size=(40, 40)).astype(np.float32)
        wanted = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 40)]
        by_photos = fit_head(features, wanted)
        even = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-3)
        gram = even.T @ even + 0.1 * 40 * np.eye(40)
        answers = 2 * wanted - 1
        kernel = (
            np.linalg.solve(gram, even.T @ (answers - answers.mean(axis=0)))
            * 10
            / (features.std(axis=0) + 1e-3)[:, None]
        )
        assert by_photos[0] == pytest.approx(kernel, abs=1e-3)
