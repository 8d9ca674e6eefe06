"""Turns a model folder into a folder for other programs: one form of the network, checked against Keras, and export.json.

What is in export.json is enough to use the form without vehclass.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Final

import numpy as np

from vehclass import __version__
from vehclass.errors import UsageError, VehclassError
from vehclass.imaging import Pixels
from vehclass.model.agreement import agreement, made_pictures
from vehclass.model.export import FORMS, PACKAGES, PORTS, ask, convert, require
from vehclass.model.folder import KERAS_FILE, ModelFolder, check_keras_file, file_digest
from vehclass.records import ModelInfo, iso, now

EXPORT_FILE: Final = "export.json"
FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Exported:
    """An export that stands in its place; `about` is what export.json says."""

    path: Path
    about: dict[str, Any]


def publish(
    folder: ModelFolder,
    form: str,
    out: Path,
    photos: Pixels | None = None,
    *,
    overwrite: bool = False,
    stage: Callable[[str], None] = lambda what: None,
) -> Exported:
    """Exports a checked model folder to the folder `out`, which appears only when the form answers as Keras does.

    `form` is one of export.FORMS. `photos` to compare on are uint8 [n, height, width, 3] of the model's input size;
    without them pictures are made. `stage` is told what begins. Raises UsageError (a form that cannot be had here,
    something at `out` that is not to be replaced), ModelRefused, VehclassError, ExportDiffers; then nothing is written.
    """
    require(form)
    refuse_unless_free(out, overwrite=overwrite)
    keras_file = folder.file(KERAS_FILE)
    check_keras_file(keras_file)
    info = folder.info
    pictures = made_pictures(info.input_size) if photos is None else photos
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise UsageError(
            reason=f"Nothing can be written at {out.parent}: {error.strerror}. Name another place with --out."
        ) from error
    try:
        draft = work / "draft"
        draft.mkdir(mode=0o755)
        place = draft / FORMS[form]
        pixels, trained, exported = (work / f"{name}.npy" for name in ("pixels", "trained", "exported"))
        np.save(pixels, pictures)
        stage(f"exporting to {form}")
        convert(form, keras_file, place, (pixels, trained))
        stage("comparing its answers with Keras'")
        ask(form, place, pixels, exported)
        check = agreement(np.load(trained), np.load(exported), info.tasks, info.novelty_limit)
        check = {"pictures": "made by vehclass" if photos is None else "photos", **check}
        about = _about(info, form, check, draft)
        with (draft / EXPORT_FILE).open("w", encoding="utf-8") as file:
            json.dump(about, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        _put(draft, out, work / "earlier")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Exported(out, about)


def _put(draft: Path, out: Path, aside: Path) -> None:
    """Moves a draft to its place; an earlier export there is moved aside, and comes back if that fails."""
    replaces = out.exists()
    try:
        if replaces:
            out.rename(aside)
        draft.rename(out)
    except BaseException as error:
        if replaces and aside.exists() and not out.exists():
            aside.rename(out)
        if isinstance(error, OSError):
            raise VehclassError(reason=f"The export could not be moved to {out}: {error.strerror}.") from error
        raise


def refuse_unless_free(out: Path, *, overwrite: bool) -> None:
    """Raises UsageError when something stands at `out`, unless it is an earlier export that may be replaced."""
    if out.suffix in (".onnx", ".xml", ".pb"):
        raise UsageError(reason=f"--out names a folder, which the export is written into; write {out.with_suffix('')}.")
    if not (out.exists() or out.is_symlink()):
        return
    if not (out / EXPORT_FILE).is_file():
        raise UsageError(reason=f"{out} is there and is no export, so it is not replaced. Name another with --out.")
    if not overwrite:
        raise UsageError(reason=f"{out} exists. Name another folder with --out, or add --overwrite.")


def _about(info: ModelInfo, form: str, check: dict[str, Any], draft: Path) -> dict[str, Any]:
    """All that is needed to ask the network and to read its answers."""
    width, height = info.input_size
    given, answer = PORTS[form]
    tasks, start = [], 0
    for task in info.tasks:
        stop = start + len(task.labels)
        tasks.append(
            {
                "name": task.name,
                "labels": list(task.labels),
                "columns": [start, stop],
                "temperature": task.temperature,
                "thresholds": list(task.thresholds),
            }
        )
        start = stop
    novelty = None if info.novelty_limit is None else {"column": start, "limit": info.novelty_limit}
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    return {
        "export_version": FORMAT_VERSION,
        "model": {"name": info.name, "version": info.version, "made": info.created_at},
        "form": form,
        "exported_at": iso(now()),
        "input": {
            "name": given,
            "type": "uint8",
            "shape": ["batch", height, width, 3],
            "layout": "batch, height, width, channels (red, green, blue), 0 to 255",
            "prepare": info.facts.get("prepare"),
            "how": (
                "Turn the photo as its EXIF orientation says, lay transparency on white, convert to RGB, stretch to "
                f"{width} x {height} with an antialiased bilinear filter; scaling to what the network wants is inside."
            ),
        },
        "output": {
            "name": answer,
            "type": "float32",
            "shape": ["batch", start + (novelty is not None)],
            "how": (
                "For each task: probabilities = softmax(output[:, columns[0]:columns[1]] / temperature), in the order "
                "of its labels; the largest is the answer, and below its label's threshold a person should look."
                + (" A picture whose novelty is above the limit is unlike the training photos." if novelty else "")
            ),
        },
        "tasks": tasks,
        "novelty": novelty,
        "check": check,
        "files": {path.relative_to(draft).as_posix(): file_digest(path) for path in files},
        "versions": {"vehclass": __version__, **{name: installed(name) for name in PACKAGES[form]}},
    }
