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
from vehclass.training.augment import PRESETS, Augment, Views, draw_views
from vehclass.training.checkpoint import State, Unfinished
from vehclass.training.dataset import read_catalogue
from vehclass.training.fit import _network, _recipe, prepare
from vehclass.training.fitting import Fitting, affordable
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


def test_features_take_their_share_of_a_time_limit() -> None:
    """The first batch, which is compiled, does not count."""
    taken: list[int] = []
    seconds = iter([0.0, 2.0])
    assert affordable(lambda batch: taken.append(len(batch)), [0] * 32, 100.0, lambda: next(seconds)) == 1600
    assert taken == [32, 32]
    seconds = iter([0.0, 500.0])
    assert affordable(lambda batch: None, [0] * 32, 100.0, lambda: next(seconds)) == 32


def numbers(variable: Any) -> Any:
    import keras

    return keras.ops.convert_to_numpy(variable + 0.0)  # a variable itself warns about copies


class TestOptimizer:
    """Which weights learn how."""

    def test_convolutions_of_ours_step_in_all_directions_alike(self) -> None:
        """A filter bank with one strong direction gets a step that is as large in the weak ones."""
        import keras

        from vehclass.training.optimizer import optimizer_for

        kernel = keras.Variable(np.zeros((3, 3, 4, 16), np.float32), name="kernel")
        rng = np.random.default_rng(0)
        strong = np.outer(rng.standard_normal(36), rng.standard_normal(16)) * 100 + rng.standard_normal((36, 16))
        optimizer = optimizer_for("small", 0.01)
        optimizer.build([kernel])
        optimizer.apply([keras.ops.convert_to_tensor(strong.reshape(3, 3, 4, 16).astype(np.float32))], [kernel])
        before, after = (np.linalg.svd(one, compute_uv=False) for one in (strong, numbers(kernel).reshape(36, 16)))
        assert before[0] > 50 * before[-1]
        assert after[0] < 4 * after[-1]
        assert np.abs(numbers(kernel)).mean() == pytest.approx(0.01 * 0.2, rel=0.5)  # as long as AdamW's

    @pytest.mark.parametrize("backbone", ["small", "mobilenet_v3_small"])
    def test_nothing_is_left_out(self, backbone: str) -> None:
        import keras

        from vehclass.model.network import build
        from vehclass.training.optimizer import Muon, optimizer_for

        network = build(backbone, (32, 32), COLOURS)
        optimizer = optimizer_for(backbone, 0.01)
        assert isinstance(optimizer, Muon) == (backbone == "small")
        optimizer.build(network.trainable_variables)
        before = [numbers(one) for one in network.trainable_variables]
        optimizer.apply([keras.ops.ones_like(one) for one in network.trainable_variables], network.trainable_variables)
        after = [numbers(one) for one in network.trainable_variables]
        assert all((one < was).all() for one, was in zip(after, before, strict=True))


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
    network = _network(plan, material.catalogue.tasks, 32, recipe)
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


def test_of_few_photos_the_last_epoch_counts_unless_told(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = iter(np.arange(1.0, 9.0))
    monkeypatch.setattr(Fitting, "_validated", lambda self: (next(worse), 0.01, {"colour": 0.5}))
    plan = Plan(coloured, tmp_path / "m", epochs=3, batch_size=16, precision="float32")
    assert [fitted(one)[1].best for one in (plan, replace(plan, patience=3))] == [2, 0]


def test_a_training_that_stopped_early_is_over(coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, because the model could not be written, it has nothing left to learn."""
    monkeypatch.setattr(Fitting, "_validated", lambda self: (1.0 + len(kept), 0.01, {"colour": 0.5}))
    kept: list[State] = []
    save = Unfinished.save

    def noted(self: Unfinished, state: State, *rest: Any) -> None:
        kept.append(replace(state))
        save(self, state, *rest)

    monkeypatch.setattr(Unfinished, "save", noted)
    _, state = fitted(Plan(coloured, tmp_path / "m", epochs=9, batch_size=16, precision="float32", patience=2))
    assert (len(state.history), [one.ended for one in kept]) == (3, [False, False, True])


def test_views_that_are_not_wanted_are_not_mixed_either(coloured: Path, tmp_path: Path) -> None:
    plan = Plan(coloured, tmp_path / "m", precision="float32")
    material = prepare(plan, read_catalogue(coloured, "colour"), 32, Listener())
    mixed = [
        _recipe(replace(plan, augment=one), material.catalogue.tasks, material.dataset, [], 0.0).views.mixed
        for one in (None, "vehicle", "none")
    ]
    assert mixed == [0.5, 0.5, 0.0]


@pytest.mark.slow
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


@pytest.mark.slow
def test_training_starts_from_a_model_of_ours(
    coloured: Path, tmp_path: Path, vehclass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert started.history == []  # the heads leave nothing to learn that the validation split could show
    assert started.best_loss < nothing.history[0]["val_loss"] / 2

    for loss, best in ((0.45, -1), (0.35, 1)):  # within an error of the heads alone, and clearly better
        measured = iter([0.5, loss, loss])
        monkeypatch.setattr(Fitting, "_validated", lambda self, left=measured: (next(left), 0.1, {"colour": 0.9}))
        assert fitted(replace(plan, weights=str(tmp_path / "first"), epochs=2))[1].best == best


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
@pytest.mark.parametrize("backbone", ["medium", "mobilenet_v3_small", "convnext_tiny", "resnet50"])
def test_backbones_are_saved_as_what_is_allowed(backbone: str, tmp_path: Path) -> None:
    from vehclass.model.network import build, feature_model, stage_means, take_weights, with_novelty

    network = build(backbone, (32, 32), (Task("a", ("x", "y")), Task("b", ("p", "q", "r"))))
    means = np.random.default_rng(0).normal(size=(40, stage_means(network).output.shape[1])).astype(np.float32)
    whole = with_novelty(network, *novelty.whitening(means))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert np.asarray(whole.predict_on_batch(pixels)).shape == (2, 6)
    whole.save(tmp_path / "model.keras")
    check_keras_file(tmp_path / "model.keras")
    other = build(backbone, (32, 32), COLOURS)
    take_weights(other, whole)
    assert all(
        (a == b).all()
        for a, b in zip(feature_model(network).get_weights(), feature_model(other).get_weights(), strict=True)
    )


def test_every_backbone_is_one_that_can_be_built() -> None:
    from vehclass.model.network import MAKERS

    assert set(MAKERS) == set(BACKBONES)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_weights_file_of_a_published_network_is_what_it_starts_from(tmp_path: Path) -> None:
    import keras

    from vehclass.model.network import build, feature_model

    published = keras.applications.MobileNetV3Small(include_top=False, weights=None, pooling="avg")
    published.save_weights(tmp_path / "made.weights.h5")
    makes = (Task("make_model", tuple(f"make {number:02}" for number in range(25))),)
    network = build("mobilenet_v3_small", (64, 64), makes, str(tmp_path / "made.weights.h5"))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    assert network.output_shape == (None, 25)
    theirs, ours = published.predict_on_batch(pixels), feature_model(network).predict_on_batch(pixels)
    assert np.asarray(ours) == pytest.approx(np.asarray(theirs), abs=1e-5)


def test_weights_that_cannot_be_had(coloured: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    """Behind a proxy that nobody listens at, as on a machine without the network."""
    answer = vehclass(
        "train", coloured, "--out", "m", "--weights", "imagenet", *QUICK,
        HOME=str(tmp_path / "home"), https_proxy="http://127.0.0.1:9", timeout=200,
    )  # fmt: skip
    assert answer.code == 2, answer.err
    assert "weights of mobilenet_v3_small are not on this machine and cannot be downloaded from here" in answer.err
    assert list(tmp_path.glob("m")) + list(tmp_path.glob(".m*")) == []


def seen(how: Views, photos: Any, seed: int = 0) -> Any:
    """The views of photos, uint8 [n, h, w, 3], that a network would learn from."""
    drawn = draw_views(np.random.default_rng(seed), len(photos), (photos.shape[2], photos.shape[1]), how)
    return np.asarray(Augment(how)(photos, *drawn), np.float32)


class TestViews:
    """What is done to photos before they are learnt from."""

    still = replace(PRESETS["none"], flip=False)
    photos = np.random.default_rng(2).integers(60, 190, (64, 28, 28, 3), np.uint8)

    def test_nothing_happens_where_nothing_is_asked_for(self) -> None:
        assert seen(self.still, self.photos) == pytest.approx(self.photos.astype(np.float32), abs=0.01)

    def test_light_views_move_by_whole_pixels(self) -> None:
        how = replace(self.still, shift=PRESETS["light"].shift)
        places = set()
        for photo, view in zip(self.photos, seen(how, self.photos), strict=True):
            fits = [
                (down, across)
                for down in range(-3, 4)
                for across in range(-3, 4)
                if np.abs(np.roll(photo, (down, across), (0, 1)) - view)[3:-3, 3:-3].max() < 0.01
            ]
            assert len(fits) == 1
            places.update(fits)
        assert len(places) > 10

    def test_half_are_mirrored_none_is_upside_down(self) -> None:
        views = seen(replace(self.still, flip=True), self.photos)
        mirrored = [np.abs(view - photo[:, ::-1]).max() < 0.01 for view, photo in zip(views, self.photos, strict=True)]
        upright = [np.abs(view - photo).max() < 0.01 for view, photo in zip(views, self.photos, strict=True)]
        assert 16 < sum(mirrored) < 48
        assert sum(mirrored) + sum(upright) == 64

    def test_some_are_as_dark_as_at_dusk(self) -> None:
        mean = seen(replace(self.still, exposed=0.5), self.photos).mean(axis=(1, 2, 3)) / self.photos.mean()
        assert mean.min() < 0.25
        assert mean.max() > 1.2
        assert 0.3 < (np.abs(mean - 1) < 0.02).mean() < 0.7

    def test_boxes_are_grey_and_only_where_asked_for(self) -> None:
        black = np.zeros_like(self.photos)
        grey = (seen(replace(self.still, erased=1.0), black) == 127.5).all(axis=3).mean(axis=(1, 2))
        assert 0.03 < grey.mean() < 0.16
        assert not seen(self.still, black).any()


class TestNovelty:
    """What is unlike the photos that were learnt from."""

    def test_what_does_not_go_together_is_far(self) -> None:
        """Each number is an ordinary one; only their combination is not."""
        rng = np.random.default_rng(3)
        hidden = rng.normal(size=(2000, 4))
        mix = rng.normal(size=(4, 40))
        features = (hidden @ mix + rng.normal(0, 0.1, (2000, 40)) + 5).astype(np.float32)
        kernel, bias = novelty.whitening(features[:1000])
        far = np.square(features @ kernel + bias).sum(axis=1)
        assert 0.05 < far.mean() < 1.05
        torn = np.stack([rng.permutation(column) for column in features.T], axis=1)
        assert np.square(torn @ kernel + bias).sum(axis=1).min() > np.quantile(far, 0.99)

    @pytest.mark.parametrize(("photos", "numbers"), [(12, 200), (500, 1000)])
    def test_few_photos_and_many_numbers(self, photos: int, numbers: int) -> None:
        features = np.random.default_rng(4).normal(2, 3, (photos, numbers)).astype(np.float32)
        features[:, ::7] = 0.25  # dead
        kernel, bias = novelty.whitening(features)
        far = np.square(features @ kernel + bias).sum(axis=1)
        assert np.isfinite(far).all()
        assert far.mean() < 1.05
        assert kernel.shape == (numbers, min(numbers, novelty.MOST_NUMBERS))

    def test_the_limit_keeps_nearly_all(self) -> None:
        at = novelty.limit(np.linspace(0, 1, 1000, dtype=np.float32))
        assert 0.975 < at < 0.985

    @pytest.mark.parametrize("backbone", ["small", "mobilenet_v3_small"])
    def test_the_network_says_how_strange_a_picture_is(self, backbone: str) -> None:
        from vehclass.model.network import build, stage_means, with_novelty

        network = build(backbone, (64, 64), COLOURS)
        pixels = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), np.uint8)
        features = np.asarray(stage_means(network).predict_on_batch(pixels))
        kernel, bias = novelty.whitening(features)
        column = np.asarray(with_novelty(network, kernel, bias).predict_on_batch(pixels))[:, -1]
        assert column == pytest.approx(np.square(features @ kernel + bias).sum(axis=1), rel=1e-3, abs=1e-3)
        plain = with_novelty(network, kernel, bias).predict_on_batch(np.full((1, 64, 64, 3), 90, np.uint8))
        assert float(np.asarray(plain)[0, -1]) > 2 * column.max()


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
