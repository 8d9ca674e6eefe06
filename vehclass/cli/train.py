"""`vehclass train`: a model from labelled photos."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vehclass.cli import options, show

KEPT = "The epochs so far are kept: run the same command with --resume to go on."
# Under which headings --help lists the options.
MAIN, NETWORK, FITTING = "What matters most", "The network", "How it is fitted"


def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder per label, or a CSV manifest with `path` and a column a task.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="The model folder to write, such as models/mine.", show_default=False)],
    task: Annotated[
        str, typer.Option(help="What the labels of a folder per label answer, such as condition.")
    ] = "label",
    preset: Annotated[
        str, typer.Option(help="How long to train: quick, balanced or best.", rich_help_panel=MAIN)
    ] = "balanced",
    time_limit: Annotated[
        str | None,
        typer.Option(
            help="Make the best of so much time, such as 30m or 2h, whatever the preset.",
            show_default=False,
            rich_help_panel=MAIN,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was stopped or killed.", rich_help_panel=MAIN)
    ] = False,
    target_precision: Annotated[
        float,
        typer.Option(
            min=0.5,
            max=1.0,
            help="Answers less sure than this precision needs are marked needs_review.",
            rich_help_panel=MAIN,
        ),
    ] = 0.95,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop on any warning of `vehclass data check`.", rich_help_panel=MAIN)
    ] = False,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="small, medium, mobilenet_v3_small, mobilenet_v3_large, efficientnet_v2_b0 to _b3, convnext_tiny or "
            "resnet50. (default: that of --weights; else small, with --preset best and no --time-limit medium)",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Where the backbone starts: a model folder of your own, imagenet, or a weights file; from nothing when not given.",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=1024,
            help="Side of the network's input in pixels. (default: from the data, at most 160)",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Passes over the training photos, at most. (default: from the preset)",
            show_default=False,
            rich_help_panel=FITTING,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after so many epochs without a better validation loss. (default: half of all; of few photos the last epoch counts)",
            show_default=False,
            rich_help_panel=FITTING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=4096,
            help="Photos a training step takes. (default: 32, or 128 of many)",
            show_default=False,
            rich_help_panel=FITTING,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-7,
            max=1.0,
            help="The highest learning rate, after the warm-up. (default: 0.002, with --weights 0.001, twice that of many photos)",
            show_default=False,
            rich_help_panel=FITTING,
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="Random views to learn from: none, light, vehicle or strong. (default: vehicle, or light of 10,000 photos and more)",
            show_default=False,
            rich_help_panel=FITTING,
        ),
    ] = None,
    no_flip: Annotated[
        bool,
        typer.Option(
            "--no-flip", help="Never mirror photos: where labels know left from right.", rich_help_panel=FITTING
        ),
    ] = False,
    label_smoothing: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="The share of doubt in every label.", rich_help_panel=FITTING)
    ] = 0.1,
    class_weights: Annotated[
        str,
        typer.Option(help="Let rare labels count more: on, off, or auto, when unbalanced.", rich_help_panel=FITTING),
    ] = "auto",
    task_weight: Annotated[
        list[str] | None,
        typer.Option(
            help="How much a task counts, such as body=2; may be repeated.", show_default=False, rich_help_panel=FITTING
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="Arithmetic of training: auto takes 16 bits where the hardware has them, or float32.",
            rich_help_panel=FITTING,
        ),
    ] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 10, help="Decides split, start and order.", rich_help_panel=FITTING)
    ] = 0,
    unlike: Annotated[
        Path | None,
        typer.Option(
            help="A folder of photos of other things: the report says how many of them ask for a look.",
            show_default=False,
            rich_help_panel=MAIN,
        ),
    ] = None,
    note: Annotated[
        str | None,
        typer.Option(
            help="A sentence that card and report say first of where care is due.",
            show_default=False,
            rich_help_panel=MAIN,
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Make an 8-bit form, too, and measure how far its answers differ: for processors without bfloat16. Needs vehclass[int8].",
            rich_help_panel=MAIN,
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that is there.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Train a model on labelled photos and write its folder, with a report.

    DATA has a folder per label, perhaps under train/, val/ and test/; or it is a CSV file (or a folder with
    manifest.csv) with the column `path` and one column a task, where empty cells are missing labels.

    Example: vehclass train photos/manifest.csv --out models/mine --time-limit 30m
    """
    from vehclass.errors import Interrupted, UsageError
    from vehclass.model.backbones import BACKBONES
    from vehclass.model.folder import refuse_unless_model
    from vehclass.training.plan import AUGMENTATIONS, PRESETS, Plan

    if out.exists() and not overwrite:
        raise UsageError(reason=f"{out} exists. Name another folder with --out, or add --overwrite.")
    refuse_unless_model(out)
    there = next(folder for folder in (out.absolute().parent, *out.absolute().parent.parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UsageError(
            reason=f"{there} cannot be written, so no model can be made at {out}. Name another place with --out."
        )
    key = options.model_key(options.given())
    theirs = _backbone_of(weights, key)
    backbone = backbone or theirs or ("medium" if preset == "best" and not time_limit else "small")
    for what, given, allowed in (
        ("backbone", backbone, BACKBONES),
        ("preset", preset, PRESETS),
        ("augmentation", augment or "vehicle", AUGMENTATIONS),
        ("--class-weights", class_weights, ("auto", "on", "off")),
        ("--precision", precision, ("auto", "float32")),
    ):
        if given not in allowed:
            raise UsageError(reason=f"There is no {what} {given!r}; choose one of {', '.join(allowed)}.")
    if unlike is not None and not unlike.is_dir():
        raise UsageError(reason=f"There is no folder {unlike}; name one with --unlike, or leave it out.")
    _refuse_what_cannot_fit(backbone, weights, input_size)
    plan = Plan(
        data=data,
        out=out,
        task_name=task,
        preset=preset,
        backbone=backbone,
        weights=weights,
        model_key=key,
        input_side=input_size,
        epochs=epochs,
        time_limit=options.seconds(time_limit, "--time-limit"),
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        augment=augment,
        flip=not no_flip,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        task_weights=_task_weights(task_weight or []),
        target_precision=target_precision,
        precision=precision,
        int8=int8,
        seed=seed,
        threads=options.cores(),
        resume=resume,
        strict=strict,
        unlike=unlike,
        note=note,
    )
    if int8:
        from vehclass.training.int8 import require_quantizer

        require_quantizer()
    from vehclass.training.checkpoint import Unfinished
    from vehclass.training.fit import train as fit

    before = Unfinished(out, {}).last_kept
    try:
        with show.status(quiet=as_json) as status:
            folder = fit(plan, _screen(status, quiet=as_json))
    except Interrupted as stopped:
        kept = Unfinished(out, {}).last_kept
        if kept is None or (kept == before and not resume):
            raise
        raise Interrupted(signal.Signals(stopped.exit_code - 128), KEPT) from None
    except Exception as error:
        if Unfinished(out, {}).last_kept not in (None, before):
            error.add_note(KEPT)
        raise
    facts = folder.info.facts
    if as_json:
        show.print_json({"path": str(folder.path), **facts})
        return
    show_metrics(facts)
    show.say(f"{folder.info.key} is in {folder.path}; look at {folder.path / 'report.html'} first.")
    show.say(f"Try it: vehclass classify-batch --container PHOTOS --model {folder.path}")


def _backbone_of(weights: str | None, key: Path | None) -> str | None:
    """The backbone that weights are for, where they say so; raises UsageError or ModelRefused.

    Looked at before any photo is opened.
    """
    from vehclass.errors import UsageError
    from vehclass.model.folder import open_model

    if weights == "imagenet":
        return "mobilenet_v3_small"
    if weights is not None and Path(weights).is_dir():
        theirs = open_model(Path(weights), key).info.facts.get("backbone")
        return str(theirs) if theirs else None
    if weights is not None and not Path(weights).is_file():
        raise UsageError(
            reason=f"The weights {weights} cannot be used: there is no such file or model folder. Name one, or imagenet."
        )
    if weights is not None and key is not None:
        raise UsageError(
            reason=f"The weights {weights} are a file that nobody has signed, and VEHCLASS_MODEL_KEY asks for a signature by {key}."
        )
    return None


def _refuse_what_cannot_fit(backbone: str, weights: str | None, input_size: int | None) -> None:
    """Raises UsageError for a backbone and weights, or an input size, that cannot go together."""
    from vehclass.errors import UsageError
    from vehclass.model.backbones import OF_OUR_OWN, SMALLEST_PUBLISHED

    own = backbone in OF_OUR_OWN
    if own and weights is not None and not Path(weights).is_dir():
        raise UsageError(
            reason=f"The weights {weights} cannot be used for {backbone}, which starts from nothing or from a model folder. "
            "Name their backbone with --backbone."
        )
    if not own and input_size is not None and input_size < SMALLEST_PUBLISHED:
        raise UsageError(reason=f"{backbone} needs an --input-size of at least {SMALLEST_PUBLISHED}; small takes less.")


def _task_weights(pairs: list[str]) -> dict[str, float]:
    from vehclass.errors import UsageError

    weights = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            weights[name] = -1.0
        if not 0 <= weights[name] <= 1000:
            raise UsageError(reason=f"--task-weight is {pair!r}; write a task and a number, such as body=2.")
    return weights


def show_metrics(facts: Mapping[str, Any]) -> None:
    """Accuracy by task, and what is confused with what, on photos that the model has not seen."""
    rows = []
    for name, of in facts["metrics"].items():
        intervals = of.get("intervals", {})
        rows.append(
            (
                name,
                show.percent(of["accuracy"]) + _between(intervals.get("accuracy")),
                f"{of['support']:,}",
                show.percent(of["coverage"]),
                show.percent(of["precision_when_sure"]),
                f"{of['ece']:.3f}" if of.get("ece") is not None else "",
            )
        )
    names = ("task", "accuracy", "photos", "sure", "right when sure", "ECE")
    show.table("On the test split", names, rows, right=names[1:])
    for task in facts["tasks"]:
        confusion = facts["metrics"][task["name"]]["confusion"]
        labels = task["labels"]
        pairs = sorted(
            (
                (count, labels[truth], labels[guess])
                for truth, row in enumerate(confusion)
                for guess, count in enumerate(row)
                if truth != guess and count
            ),
            reverse=True,
        )[:5]
        if pairs:
            text = ", ".join(f"{truth} taken for {guess} ({count})" for count, truth, guess in pairs)
            show.say(f"{task['name']}: {text}")
    odd = facts.get("novelty", {}).get("examples")
    if odd:
        text = ", ".join(f"{show.percent(share, 0)} of {kind}" for kind, share in odd.items())
        show.say(f"Of what is unlike its photos, so many ask for a look: {text}")
    show.say()


def _between(interval: list[float] | None) -> str:
    return f" ({interval[0] * 100:.1f}-{interval[1] * 100:.1f})" if interval else ""


def _screen(status: Callable[[str], None], *, quiet: bool) -> Any:
    """What a person sees while a model is trained."""
    from vehclass.training.plan import Listener

    class Screen(Listener):
        def catalogue(self, catalogue: Any) -> None:
            for task in catalogue.tasks:
                counts = catalogue.label_counts(task)
                show.note(f"{task.name}: " + ", ".join(f"{label} {counts[label]:,}" for label in task.labels))

        def decoded(self, done: int, total: int) -> None:
            status(f"decoding photos: {done:,} of {total:,}")

        def findings(self, findings: Any) -> None:
            for one in findings:
                examples = f": {', '.join(one.examples)}" if one.examples else ""
                show.note(f"{one.severity}: {one.message}{examples}")

        def dataset(self, dataset: Any, input_size: tuple[int, int]) -> None:
            parts = ", ".join(f"{len(rows):,} {split}" for split, rows in dataset.rows.items())
            show.note(f"{parts}; seen at {input_size[0]}x{input_size[1]} pixels")

        def step(self, epoch: int, progress: float, loss: float, left: float | None) -> None:
            ends = f", {show.duration(left)} left" if left is not None else ""
            status(f"training, epoch {epoch}: {progress:.0%}, loss {loss:.3f}{ends}")

        def epoch(self, number: int, of: int, logs: Mapping[str, float], tasks: Any) -> None:
            right = "  ".join(
                f"{task.name} {logs[f'val_{task.name}']:.1%}" for task in tasks if f"val_{task.name}" in logs
            )
            show.note(
                f"epoch {number:>3}/{of}  loss {logs['loss']:.3f}  val loss {logs['val_loss']:.3f}  right: {right}  "
                f"{show.duration(logs['seconds'])}"
            )

        def stage(self, what: str) -> None:
            show.note(what)
            status(what)

    return Listener() if quiet else Screen()
