"""`vehclass evaluate`: how good a model is, on labelled photos that it has not learnt from."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vehclass.cli import options, show
from vehclass.cli.figures import print_figures
from vehclass.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from vehclass.model.classifier import Classifier
    from vehclass.model.folder import ModelFolder
    from vehclass.settings import Settings
    from vehclass.training.dataset import Catalogue, Sample
    from vehclass.training.examine import Unusable
    from vehclass.training.report import Examined


class Split(StrEnum):
    """Which photos to measure on."""

    auto = "auto"
    train = "train"
    val = "val"
    test = "test"
    all = "all"


def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder, such as models/mine.", show_default=False)],
    data: Annotated[
        Path,
        typer.Argument(
            help="Labelled photos as `train` takes them: a folder per label, or a CSV manifest.", show_default=False
        ),
    ],
    split: Annotated[
        Split,
        typer.Option(
            help="auto: all but what the model learnt from. train, val, test: as the model, or the data, record it."
        ),
    ] = Split.auto,
    against: Annotated[
        str | None, typer.Option(help="Another model, to compare with on the same photos.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a report, such as report.html.", show_default=False)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What a folder per label answers, where the model has several tasks; the one to measure otherwise.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that decode and classify. (default: as many as cores)", show_default=False),
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure a model on labelled photos that it has not learnt from; compare it with another.

    Photos that cannot be decoded are listed and left out; then the exit code is 3.

    Example: vehclass evaluate models/mine photos --against models/sample --report report.html
    """
    settings = options.given(model=model, threads=threads)
    if report is not None and not report.absolute().parent.is_dir():
        raise UsageError(reason=f"{report} cannot be written: there is no folder {report.parent}.")
    from vehclass.training.comparison import compare_tasks
    from vehclass.training.evaluate import measure
    from vehclass.training.examine import select
    from vehclass.training.report import write_report
    from vehclass.training.splits import read_splits

    folders = [options.model_folder(settings)]
    if against is not None:
        folders.append(options.model_folder(options.given(model=against, threads=threads)))
    catalogue, wanted = _readable(data, task, folders[0])
    unwritten: UsageError | None = None
    shared = _shared(folders, wanted) if len(folders) > 1 else []
    workers = settings.threads or options.cores()
    with show.status(quiet=as_json) as status:
        chosen = select(
            catalogue,
            split.value,
            [read_splits(folder.path) for folder in folders],
            threads=workers,
            progress=lambda done, total: status(f"reading photos: {done:,} of {total:,}"),
        )
        seen = [_look(folder, chosen.samples, settings, catalogue.root, workers, status) for folder in folders]
        status("measuring")
        examined, _, speed = seen[0]
        metrics = measure(examined.logits, examined.targets, examined.tasks, examined.novelty_limit)
        document = {
            "model": folders[0].info.key,
            "data": str(data),
            "split": split.value,
            "photos": len(examined.paths),
            "left_out": chosen.left_out,
            "notes": list(chosen.notes),
            "unusable": [
                {"file": str(one.path), "code": one.code, "message": one.message}
                for one in dict.fromkeys(one for _, some, _ in seen for one in some)
            ],
            "tasks": {name: of for name, of in metrics.items() if name in wanted},
            "latency": speed,
            "comparison": [],
        }
        if shared:
            names = (folders[0].info.key, folders[1].info.key)
            document["comparison"] = compare_tasks(examined, seen[1][0], shared, names)
        if report is not None:
            status("writing the report")
            try:
                write_report(report, _facts(folders[0], document), examined.only(wanted))
            except OSError as error:
                unwritten = UsageError(reason=f"{report} cannot be written: {error.strerror or error}.")
    if as_json:
        show.print_json({**document, "report": str(report) if report and unwritten is None else None})
    else:
        print_figures(document)
        if report is not None and unwritten is None:
            show.say(f"The report is in {report / 'report.html' if report.is_dir() else report}.")
    if unwritten is not None:
        raise unwritten
    if document["unusable"]:
        raise typer.Exit(int(ExitCode.SOME_IMAGES_FAILED))


def _readable(data: Path, task: str | None, folder: "ModelFolder") -> "tuple[Catalogue, list[str]]":
    """The photos with a label for a task of the model, with these labels only, and those tasks."""
    from dataclasses import replace

    from vehclass.training.dataset import read_catalogue

    own = [one.name for one in folder.info.tasks]
    if task is not None and task not in own:
        raise UsageError(reason=f"{folder.info.key} has no task {task!r}, only {', '.join(own)}.")
    unnamed = "\0"  # no manifest has such a column
    catalogue = read_catalogue(data, task or (own[0] if len(own) == 1 else unnamed))
    there = [one.name for one in catalogue.tasks]
    if there == [unnamed]:
        raise UsageError(reason=f"Say with --task what the folders in {data} answer: {', '.join(own)}.")
    wanted = [name for name in own if name in there and task in (None, name)]
    if not wanted:
        raise UsageError(
            reason=f"The model answers {', '.join(own)}, and {data} has labels for {', '.join(there)} only."
        )
    samples = [
        replace(sample, labels={name: label for name, label in sample.labels.items() if name in wanted})
        for sample in catalogue.samples
        if any(name in sample.labels for name in wanted)
    ]
    if not samples:
        raise UsageError(reason=f"No photo in {data} has a label for {', '.join(wanted)}.")
    return replace(catalogue, samples=tuple(samples)), wanted


def _shared(folders: "Sequence[ModelFolder]", wanted: Sequence[str]) -> list[str]:
    """The tasks that two models share; raises UsageError where they do not answer with the same labels."""
    first, second = ({task.name: task.labels for task in folder.info.tasks} for folder in folders)
    shared = [name for name in wanted if name in second]
    names = f"{folders[0].info.key} and {folders[1].info.key}"
    if not shared:
        raise UsageError(reason=f"{names} cannot be compared: they share no task that the data have.")
    for name in shared:
        odd = sorted(set(first[name]) ^ set(second[name]))
        if odd:
            raise UsageError(
                reason=f"{names} cannot be compared: their labels of {name} differ ({', '.join(odd[:5])}). "
                "With --task, name a task whose labels they share."
            )
    return shared


def _look(
    folder: "ModelFolder",
    samples: "Sequence[Sample]",
    settings: "Settings",
    root: Path,
    threads: int,
    status: Callable[[str], None],
) -> "tuple[Examined, tuple[Unusable, ...], dict[str, Any]]":
    """What one model says of the photos, which of them could not be used, and how fast it is."""
    from vehclass import imaging
    from vehclass.errors import ReadError
    from vehclass.model.classifier import Classifier
    from vehclass.training.examine import examine, latency

    def open_photo(path: Path) -> Any:
        if path.stat().st_size > settings.max_bytes:
            raise ReadError("too_many_bytes", f"At most {settings.max_bytes} bytes are read.", permanent=True)
        return imaging.decode(
            path.read_bytes(),
            folder.info.input_size,
            formats=settings.image_formats,
            max_pixels=settings.max_pixels,
        )[0]

    def opened(batch_size: int | None, streams: int) -> "Classifier":
        return Classifier.open(
            folder, kind=settings.runtime, batch_size=batch_size, threads=streams, precision=settings.precision
        )

    status("loading the model")
    classifier = opened(settings.batch_size, threads)
    examined, unusable = examine(
        classifier,
        samples,
        open_photo,
        threads=threads,
        root=root,
        progress=lambda done, total: status(f"classifying photos: {done:,} of {total:,}"),
    )
    status("timing the model")
    speed = latency(opened(1, 1).runtime, classifier.runtime, folder.info.input_size, threads)
    return examined, unusable, speed


def _facts(folder: "ModelFolder", document: Mapping[str, Any]) -> dict[str, Any]:
    """What the report is told: the model's own facts, with the figures of these photos in place of its own."""
    facts: dict[str, Any] = dict(folder.info.facts)
    facts["tasks"] = [task for task in facts["tasks"] if task["name"] in document["tasks"]]
    left = document["left_out"]
    notes = [*document["notes"]]
    if left:
        notes.append("Left out: " + ", ".join(f"{count:,} {split}" for split, count in left.items()) + ".")
    if document["unusable"]:
        notes.append(f"{len(document['unusable']):,} files could not be used.")
    return {
        **facts,
        "metrics": document["tasks"],
        "latency": document["latency"],
        "comparison": document["comparison"],
        "evaluated": {
            "data": Path(document["data"]).name or "the data",
            "photos": document["photos"],
            "split": document["split"] if document["split"] != "auto" else None,
            "notes": notes,
        },
    }
