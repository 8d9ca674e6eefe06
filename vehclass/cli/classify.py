"""`vehclass classify`: a quick look at a few files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vehclass.cli import options, show
from vehclass.errors import ExitCode


def classify(
    files: Annotated[list[Path], typer.Argument(help="Photos to look at.", show_default=False)],
    model: options.Model = None,
    runtime: options.Runtime = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many labels to show for each task.")] = 3,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Look at a few photos: the top labels for each task. Writes nothing.

    Example: vehclass classify car.jpg van.jpg --model models/sample
    """
    settings = options.given(model=model, runtime=runtime)
    folder = options.model_folder(settings)
    from functools import partial

    from vehclass import imaging
    from vehclass.batch.batches import Read, Turn, one_by_one
    from vehclass.errors import ReadError
    from vehclass.model.classifier import Classifier
    from vehclass.records import ImageRef, now

    def read(file: Path) -> Read:
        ref = ImageRef("", "", str(file), "", 0, now())
        try:
            if file.exists() and not file.is_file():
                raise ReadError("not_a_file", "It is a folder, a pipe or a device.", permanent=True)
            if file.stat().st_size > settings.max_bytes:
                raise ReadError("too_many_bytes", f"At most {settings.max_bytes} bytes are read.", permanent=True)
            return Read(ref, (0,), file.read_bytes())
        except ReadError as error:
            return Read(ref, (0,), error=error)
        except OSError as error:
            return Read(ref, (0,), error=ReadError("unreadable", f"{error.strerror or error}.", permanent=True))

    classifier = Classifier.open(folder, kind=settings.runtime, threads=1, precision=settings.precision)
    decode = partial(imaging.decode, formats=settings.image_formats, max_pixels=settings.max_pixels)
    turn, by_name = Turn(one_by_one(decode), [classifier]), {}
    for at in range(0, len(files), classifier.batch_size):
        turn.take([read(file) for file in files[at : at + classifier.batch_size]])
        by_name.update({outcome.ref.name: outcome for _, outcome in turn.outcomes()})
    document: list[dict[str, Any]] = []
    rows = []
    for file in map(str, files):
        outcome = by_name[file]
        if outcome.failure:
            document.append(
                {
                    "file": file,
                    "failure": {
                        "stage": outcome.failure.stage,
                        "code": outcome.failure.code,
                        "message": outcome.failure.message,
                    },
                }
            )
            rows.append((file, outcome.failure.code, outcome.failure.message))
            continue
        answers = {}
        for number, (task, answer) in enumerate(zip(folder.info.tasks, outcome.predictions, strict=True)):
            ranked = sorted(zip(task.labels, answer.probabilities, strict=True), key=lambda pair: -pair[1])[:top_k]
            answers[task.name] = {
                "label": answer.label,
                "needs_review": answer.needs_review,
                "probabilities": dict(ranked),
            }
            text = ", ".join(f"{label} {share:.1%}" for label, share in ranked)
            rows.append(("" if number else file, task.name, text + (" (to review)" if answer.needs_review else "")))
        document.append({"file": file, "tasks": answers})
    if as_json:
        show.print_json({"model": folder.info.key, "files": document})
    else:
        show.table(None, ("file", "task", "labels"), rows)
    if any("failure" in one for one in document):
        raise typer.Exit(int(ExitCode.SOME_IMAGES_FAILED))
