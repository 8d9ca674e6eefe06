"""Turns labelled photos into a model folder: the story of `vehclass train`."""

import shutil
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from vehclass.errors import DataError, ModelRefused, UsageError
from vehclass.model.backbones import OF_OUR_OWN, SMALLEST_PUBLISHED
from vehclass.model.folder import KERAS_FILE, ModelFolder, check_keras_file, open_model, refuse_unless_model
from vehclass.model.frameworks import fast_policy, load_keras
from vehclass.records import Task
from vehclass.training import findings as looking
from vehclass.training.checkpoint import Unfinished
from vehclass.training.dataset import Catalogue, read_catalogue
from vehclass.training.decoded import Dataset, Look, dataset_of, look, photos_below, typical_side
from vehclass.training.duplicates import groups
from vehclass.training.pace import usual_epochs
from vehclass.training.plan import Listener, Material, Plan
from vehclass.training.splits import learnt_from, read_splits, split_rows

LARGEST_DEFAULT_SIDE: Final = 160
UNBALANCED: Final = 5.0  # times as many photos of one label as of another: class weights
# To train with, below which blending photos helps, and the validation split is too small to choose an epoch by: all
# of its few photos are right long before the last epoch, which knows more.
FEW_PHOTOS: Final = 1000
# To train with: they are varied enough, and seen a few times only, for lighter views, larger batches and no dropout.
MANY_PHOTOS: Final = 10_000
DROPOUT: Final = 0.25  # of the features, unless there are many photos
FINISHING_SHARE, FINISHING_SECONDS = 0.1, 60.0  # of a time limit, kept for export, calibration and report


def train(plan: Plan, listener: Listener) -> ModelFolder:
    """Looks the data over, trains, calibrates, exports, checks and measures; the folder appears when all of that is done.

    Raises DataError for unusable data, UsageError for options that do not fit them, ExportDiffers when the exported
    network answers otherwise.
    """
    began = time.monotonic()
    refuse_unless_model(plan.out)
    catalogue = read_catalogue(plan.data, plan.task_name)
    unknown = set(plan.task_weights) - {task.name for task in catalogue.tasks}
    if unknown:
        raise UsageError(reason=f"--task-weight names {min(unknown)!r}, which is no task of {plan.data}.")
    listener.catalogue(catalogue)
    side = plan.input_side or typical_side(catalogue, LARGEST_DEFAULT_SIDE)
    if plan.backbone not in OF_OUR_OWN:
        side = max(side, SMALLEST_PUBLISHED)
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    material = prepare(plan, catalogue, side, listener)
    fingerprint = {**plan.as_saved(), "side": side, "data": material.dataset.digest()}
    unfinished = Unfinished(plan.out, fingerprint)
    with unfinished.held(resume=plan.resume) as state:
        if state:
            listener.stage(f"going on after epoch {state.epoch}")
        elif plan.resume:
            listener.stage("nothing to resume: starting anew")
        listener.stage("loading Keras")
        keras, gpus = load_keras()
        from vehclass.model.network import build
        from vehclass.training.finish import finish
        from vehclass.training.fitting import Fitting

        keras.utils.set_random_seed(plan.seed)
        recipe = _recipe(plan, catalogue.tasks, material.dataset, gpus, time.monotonic() - began)
        network = _network(plan, catalogue.tasks, side, recipe)
        state = Fitting(network, catalogue.tasks, material.dataset, recipe, unfinished, listener).run(state)
        final = build(plan.backbone, (side, side), catalogue.tasks)
        final.set_weights(network.get_weights())
        draft = Path(tempfile.mkdtemp(prefix=f".{plan.out.name}.", suffix=".part", dir=plan.out.parent))
        try:
            return finish(plan, material, final, state, draft, listener)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def prepare(plan: Plan, catalogue: Catalogue, side: int, listener: Listener) -> Material:
    """The photos decoded to `side` x `side`, looked over and split; raises DataError or UsageError."""
    found = looking.label_findings(catalogue)
    _stop_at(found, plan)
    seen = look(catalogue, (side, side), threads=plan.threads, cache_beside=plan.out.parent, progress=listener.decoded)
    found += looking.photo_findings(catalogue, seen, side)
    before = learnt_from(read_splits(Path(plan.weights))) if plan.weights else frozenset()
    dataset = dataset_of(catalogue, seen, split(catalogue, seen, plan.seed, before))
    found += looking.learnt_before(dataset.rows, dataset.digests, before)
    found += looking.split_findings(dataset.rows, catalogue, dataset.targets)
    listener.findings(found)
    _stop_at(found, plan)
    listener.dataset(dataset, (side, side))
    unlike = photos_below(plan.unlike, (side, side)) if plan.unlike else None
    return Material(catalogue, dataset, side, tuple(found), unlike, before)


def _stop_at(found: list[looking.Finding], plan: Plan) -> None:
    """Raises DataError for an error among the findings, with `strict` for a warning, too."""
    grave = [one for one in found if one.severity == "error" or (plan.strict and one.severity == "warning")]
    if grave:
        more = f", and {len(grave) - 1} more findings; see `vehclass data check`" if len(grave) > 1 else ""
        raise DataError(path=plan.data, reason=f"{grave[0].message}{more}")


def split(catalogue: Catalogue, seen: Look, seed: int, before: Collection[str] = ()) -> dict[str, Any]:
    """The rows of train, val and test: those that decode and have a label, copies of one photo together.

    Photos whose digests are in `before` are learnt from again, and measured on never.
    """
    samples = [catalogue.samples[row] for row in seen.usable]
    at = {int(row): number for number, row in enumerate(seen.usable)}
    copies = [(at[one], at[other]) for one, other in (*seen.exact_copies, *seen.near_copies)]
    kept = [[number for number in group if samples[number].labels] for group in groups(len(samples), copies)]
    learnt = [number for number, row in enumerate(seen.usable) if seen.digests[row] in before]
    return split_rows(samples, seen.usable, seed, [group for group in kept if group], learnt)


def _recipe(plan: Plan, tasks: tuple[Task, ...], dataset: Dataset, gpus: list[str], spent: float) -> Any:
    """Every choice that the plan leaves open, made from the preset and the data."""
    from vehclass.training.augment import views
    from vehclass.training.fitting import Recipe, is_unbalanced

    photos = len(dataset.rows["train"])
    # With a clock, epochs only bound what more of them could not improve.
    epochs = plan.epochs or usual_epochs(photos, "best" if plan.time_limit else plan.preset)
    batch_size = plan.batch_size or (128 if photos >= MANY_PHOTOS else 32)
    unbalanced = is_unbalanced(dataset.targets[dataset.rows["train"]], UNBALANCED)
    rate = 1e-3 if plan.weights else 2e-3
    seconds = None
    if plan.time_limit:
        seconds = plan.time_limit - spent - min(FINISHING_SECONDS, FINISHING_SHARE * plan.time_limit)
        if seconds <= 0:
            raise UsageError(
                reason=f"Decoding alone took {spent:.0f} s of the --time-limit of {plan.time_limit:.0f} s. Give it more."
            )
    return Recipe(
        epochs=epochs,
        heads_first=plan.weights is not None,
        # Half of all: what stops in the middle of the schedule has not been learnt at its low rates.
        patience=plan.patience or (None if photos < FEW_PHOTOS else max(10, epochs // 2)),
        batch_size=batch_size,
        learning_rate=plan.learning_rate or rate * (batch_size / 32) ** 0.5,
        views=views(
            plan.augment or ("light" if photos >= MANY_PHOTOS else "vehicle"),
            flip=plan.flip,
            mixed=0.5 if photos < FEW_PHOTOS and plan.augment != "none" else None,
        ),
        dropout=0.0 if photos >= MANY_PHOTOS else DROPOUT,
        label_smoothing=plan.label_smoothing,
        weighted=plan.class_weights == "on" or (plan.class_weights == "auto" and unbalanced),
        task_weights=tuple(plan.task_weights.get(task.name, 1.0) for task in tasks),
        seconds=seconds,
        policy=fast_policy(gpus) if plan.precision == "auto" else plan.precision,
        freeze_statistics=plan.weights == "imagenet",
        seed=plan.seed,
    )


def _network(plan: Plan, tasks: tuple[Task, ...], side: int, recipe: Any) -> Any:
    """The network that learns, in the recipe's arithmetic, from the plan's weights."""
    import keras

    from vehclass.model.network import build, take_weights

    own = plan.weights is not None and Path(plan.weights).is_dir()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.policy)
    try:
        network = build(plan.backbone, (side, side), tasks, None if own else plan.weights, recipe.dropout)
    finally:
        keras.config.set_dtype_policy(before)
    if own:
        folder = open_model(Path(plan.weights or ""), plan.model_key)
        file = folder.file(KERAS_FILE)
        check_keras_file(file)
        try:
            take_weights(network, keras.saving.load_model(file, compile=False, safe_mode=True))
        except ValueError as error:
            theirs = folder.info.facts.get("backbone")
            raise ModelRefused(
                path=folder.path,
                reason=f"its backbone {theirs} does not fit the {plan.backbone} of this version of vehclass ({error})",
            ) from error
    return network
