"""`vehclass train`: a model from labelled photos."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vehclass.cli import options, show

FEW_PHOTOS = 100  # to validate or test with, below which figures are not to be relied on


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
    backbone: Annotated[
        str, typer.Option(help="small, mobilenet_v3_small, mobilenet_v3_large or efficientnet_v2_b0.")
    ] = "small",
    weights: Annotated[
        str | None,
        typer.Option(
            help="Where a backbone starts: imagenet, or a weights file; from nothing when not given.",
            show_default=False,
        ),
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(
            min=32,
            max=1024,
            help="Side of the network's input in pixels. (default: from the data, at most 160)",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training photos, at most.")] = 40,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop after so many epochs without a better validation loss.")
    ] = 10,
    batch_size: Annotated[int, typer.Option(min=2, max=4096, help="Photos a training step takes.")] = 32,
    learning_rate: Annotated[
        float, typer.Option(min=1e-7, max=1.0, help="The highest learning rate, after two epochs of warm-up.")
    ] = 2e-3,
    target_precision: Annotated[
        float,
        typer.Option(min=0.5, max=1.0, help="Answers less sure than this precision needs are marked needs_review."),
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 10, help="Decides split, start and order.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that is there.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Train a model on labelled photos and write its folder.

    DATA has a folder per label, perhaps under train/, val/ and test/; or it is a CSV file (or a folder with
    manifest.csv) with the column `path` and one column a task, where empty cells are missing labels.

    Example: vehclass train photos/manifest.csv --out models/mine
    """
    from vehclass.errors import UsageError
    from vehclass.model.backbones import BACKBONES
    from vehclass.model.folder import refuse_unless_model

    if out.exists() and not overwrite:
        raise UsageError(reason=f"{out} exists. Name another folder with --out, or add --overwrite.")
    refuse_unless_model(out)
    there = next(folder for folder in (out.absolute().parent, *out.absolute().parent.parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UsageError(
            reason=f"{there} cannot be written, so no model can be made at {out}. Name another place with --out."
        )
    if backbone not in BACKBONES:
        raise UsageError(reason=f"There is no backbone {backbone!r}; choose one of {', '.join(BACKBONES)}.")
    from vehclass.training.fit import Plan
    from vehclass.training.fit import train as fit

    plan = Plan(
        data=data,
        out=out,
        task_name=task,
        backbone=backbone,
        weights=weights,
        input_side=input_size,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        target_precision=target_precision,
        seed=seed,
        threads=options.cores(),
    )
    with show.status(quiet=as_json) as status:
        folder = fit(plan, _screen(status, quiet=as_json))
    facts = folder.info.facts
    if as_json:
        show.print_json({"path": str(folder.path), **facts})
        return
    show_metrics(facts)
    show.say(
        f"{folder.info.key} is in {folder.path}. Try it: vehclass classify-batch --container PHOTOS --model {folder.path}"
    )


def show_metrics(facts: Mapping[str, Any]) -> None:
    """Accuracy by task, and what is confused with what, on photos that the model has not seen."""
    rows = [
        (
            name,
            show.percent(of["accuracy"]),
            f"{of['support']:,}",
            show.percent(of["coverage"]),
            show.percent(of["precision_when_sure"]),
        )
        for name, of in facts["metrics"].items()
    ]
    show.table(
        "On the test split",
        ("task", "accuracy", "photos", "sure", "right when sure"),
        rows,
        right=("accuracy", "photos", "sure", "right when sure"),
    )
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
    show.say()


def _screen(status: Callable[[str], None], *, quiet: bool) -> Any:
    """What a person sees while a model is trained."""
    from vehclass.training.fit import Listener

    class Screen(Listener):
        def catalogue(self, catalogue: Any) -> None:
            for task in catalogue.tasks:
                counts = catalogue.label_counts(task)
                show.note(f"{task.name}: " + ", ".join(f"{label} {counts[label]:,}" for label in task.labels))

        def decoded(self, done: int, total: int) -> None:
            status(f"decoding photos: {done:,} of {total:,}")

        def dataset(self, dataset: Any, input_size: tuple[int, int]) -> None:
            parts = ", ".join(f"{len(rows):,} {split}" for split, rows in dataset.rows.items())
            show.note(f"{parts}; seen at {input_size[0]}x{input_size[1]} pixels")
            for file in dataset.rejected[:10]:
                show.note(f"left out: {file.path}: {file.message}")
            if len(dataset.rejected) > 10:
                show.note(f"... and {len(dataset.rejected) - 10:,} more left out; all are in model.json")
            least = min(len(dataset.rows[split]) for split in ("val", "test"))
            if least < FEW_PHOTOS:
                show.note(
                    f"only {least} photos to check with: accuracy, probabilities and thresholds will be rough guesses"
                )
            status("loading Keras")

        def step(self, number: int, of: int, loss: float) -> None:
            status(f"step {number:,} of {of:,}, loss {loss:.3f}")

        def epoch(self, number: int, of: int, logs: Mapping[str, float]) -> None:
            tasks = [name for name in logs if f"val_{name}" in logs and name != "loss"]
            seen = "  ".join(f"{name} {logs[f'val_{name}']:.1%}" for name in tasks)
            show.note(
                f"epoch {number:>3}/{of}  loss {logs['loss']:.3f}  val loss {logs['val_loss']:.3f}  right: {seen}"
            )

        def stage(self, what: str) -> None:
            show.note(what)
            status(what)

    return Listener() if quiet else Screen()
