"""A model folder: what training writes and classifying reads, checked before anything is deserialised.

A folder holds `model.keras`, its exported forms and `model.json` with the facts. The version of a model
is a digest of its content, so two folders with the same version answer alike.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from vehclass.errors import ModelNotFound, ModelRefused, UsageError
from vehclass.model import signature
from vehclass.records import ModelInfo, Task

# 2 added thresholds by label and the novelty column; folders of format 1 are still read.
FORMAT_VERSION: Final = 2
READABLE_FORMATS: Final = (1, 2)
FACTS_FILE: Final = "model.json"
KERAS_FILE: Final = "model.keras"
OPENVINO_FILE: Final = "openvino.xml"
INT8_FILE: Final = "openvino_int8.xml"
# For people to read, and to add to: no part of what the version is a digest of.
DOCUMENTS: Final = frozenset({"card.md", "report.html", "history.csv", "history.json"})
MAX_FACTS_BYTES: Final = 16 * 2**20
MAX_CONFIG_BYTES: Final = 64 * 2**20
BYTES_OF_A_WEIGHT: Final = 4  # Keras keeps them in 32 bits
WEIGHTED_LAYERS: Final = frozenset(
    {
        *("Dense", "Conv2D", "DepthwiseConv2D", "SeparableConv2D"),
        *("BatchNormalization", "LayerNormalization", "Normalization", "LayerScale"),
    }
)
MOST_PADDING: Final = 1024
LARGEST_SIDE: Final = 4096  # of an input, in pixels
HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"

# Every layer that our backbones are made of. A Keras file with anything else (a Lambda, a layer that
# reads files or the network) is not opened, whatever Keras' safe mode would say of it.
ALLOWED_LAYERS: Final = frozenset(
    {
        *("Add", "Multiply", "Concatenate", "Flatten", "Reshape", "Rescaling", "ZeroPadding2D"),
        *("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense", "Dropout", "SpatialDropout2D"),
        *("Activation", "ReLU", "BatchNormalization", "LayerNormalization", "Normalization"),
        *("AveragePooling2D", "MaxPooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D"),
        *("Functional", "InputLayer", "Sequential", "Identity", "UnitNormalization", "Max"),
    }
)
# A layer that only one published backbone has, under its maker's own name.
ALLOWED_OTHERS: Final = frozenset({("keras.src.applications.convnext", "LayerScale")})
# Where else a serialised part may come from: these hold data and arithmetic only.
ALLOWED_PARTS: Final = ("keras.initializers", "keras.regularizers", "keras.constraints")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model folder whose files have been found unchanged."""

    path: Path
    info: ModelInfo
    files: Mapping[str, str]

    def file(self, name: str) -> Path:
        """The path of one of its files; raises ModelRefused when the model lacks it."""
        if name not in self.files:
            raise ModelRefused(path=self.path, reason=f"it has no {name}")
        return self.path / name


def open_model(path: Path, key: Path | None = None) -> ModelFolder:
    """The model in a folder, with every file compared to the sha256 in model.json.

    With a public `key` (PEM), its owner must have signed them. Raises ModelNotFound or ModelRefused. Nothing is
    deserialised but JSON.
    """
    facts = _read_facts(path)
    try:
        files = {str(name): str(digest) for name, digest in facts["files"].items()}
        info = ModelInfo(
            name=_as_text(facts["name"]),
            version=str(facts["version"]),
            tasks=tuple(_as_task(task) for task in facts["tasks"]),
            input_size=_as_size(facts["input_size"]),
            created_at=str(facts["created_at"]),
            novelty_limit=_as_number(facts["novelty"]["limit"]) if facts.get("novelty") else None,
            facts=facts,
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelRefused(path=path, reason=f"{FACTS_FILE} lacks what it should say ({error})") from error
    for name, digest in files.items():
        if Path(name).name != name:
            raise ModelRefused(path=path, reason=f"{FACTS_FILE} names a file outside the folder ({name})")
        _check_file(path, name, digest)
    if info.version != _version(facts):
        raise ModelRefused(path=path, reason=f"{FACTS_FILE} was changed after the model was made")
    if key is not None:
        signature.check(path, key, DOCUMENTS)
    return ModelFolder(path, info, files)


def write_model(
    draft: Path,
    out: Path,
    facts: Mapping[str, Any],
    tasks: tuple[Task, ...],
    describe: Callable[[Path, Mapping[str, Any]], None] = lambda folder, facts: None,
) -> ModelFolder:
    """Turns a draft folder with the network's files into a model folder at `out`, in one step.

    `facts` goes into model.json beside the tasks, the digests and the version; `describe` is given the draft and all
    of that, to add the documents for people, which no digest holds to a wording. An earlier model at `out` is moved
    aside until the new one stands in its place; anything else there is refused.
    """
    refuse_unless_model(out)
    files = {
        entry.name: file_digest(entry)
        for entry in sorted(draft.iterdir())
        if entry.is_file() and entry.name not in DOCUMENTS
    }
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        **facts,
        "tasks": [asdict(task) for task in tasks],
        "files": files,
    }
    content["version"] = _version(content)
    describe(draft, content)
    with (draft / FACTS_FILE).open("w", encoding="utf-8") as file:
        file.write(_readable(content))
        file.flush()
        os.fsync(file.fileno())
    if out.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent)) / out.name
        out.rename(aside)
        draft.rename(out)
        shutil.rmtree(aside.parent)
    else:
        draft.rename(out)
    return open_model(out)


def _readable(content: Mapping[str, Any]) -> str:
    """JSON for people and diffs: indented, but a row of numbers in one line; a confusion matrix has 200 of 200."""
    text = json.dumps(content, indent=2)
    # A newline is never part of a JSON string, so this touches lists only.
    return re.sub(r"\[\n[-+.,\deE\s]*\n\s*\]", lambda row: re.sub(r"\s+", " ", row[0]), text) + "\n"


def refuse_unless_model(out: Path) -> None:
    """Raises UsageError when something other than a model folder stands where one is to be written."""
    if (out / "production.json").exists() or any(out.glob(f"*/{FACTS_FILE}")):
        raise UsageError(
            reason=f"{out} holds versions of a registry, which are not replaced. Train into another folder, and put it there with `vehclass model push`."
        )
    if (out.exists() or out.is_symlink()) and not (out / FACTS_FILE).is_file():
        raise UsageError(
            reason=f"{out} is there and is no model folder, so it is not replaced. Name another with --out."
        )


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_keras_file(path: Path) -> None:
    """Refuses a Keras file that is not a plain network of known layers; raises ModelRefused.

    Keras' safe mode has been walked around more than once (CVE-2025-1550, -8747, -9906), and is ignored
    for HDF5 (CVE-2025-9905), so the configuration is read here first, as JSON.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member.file_size for member in archive.infolist()}
            if set(members) != {"metadata.json", "config.json", "model.weights.h5"}:
                raise ModelRefused(path=path, reason="it is not a plain Keras 3 file")
            if members["config.json"] > MAX_CONFIG_BYTES:
                raise ModelRefused(path=path, reason="its configuration is too large")
            config = json.loads(archive.read("config.json"))
            # What the archive says of its parts is a claim, too.
            room = min(members["model.weights.h5"], path.stat().st_size) // BYTES_OF_A_WEIGHT
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ModelRefused(path=path, reason=f"it is not a Keras 3 file ({error})") from error
    for part in _objects(config):
        module, name = part.get("module"), part["class_name"]
        if module == "keras.layers" or str(module).startswith(("keras.src.models.", "keras.src.ops.numpy")):
            allowed = name in ALLOWED_LAYERS
        else:
            allowed = (
                module in ALLOWED_PARTS
                or (module, name) in ((None, "__keras_tensor__"), ("keras", "DTypePolicy"), ("keras", "Sequential"))
                or (module, name) in ALLOWED_OTHERS
            )
        if not allowed or part.get("registered_name") not in (None, name):
            raise ModelRefused(path=path, reason=f"it has a part of a kind that is not allowed ({module}.{name})")
        # Keras sets memory aside for what the configuration claims, before it looks into the weights.
        try:
            room -= _weights_of(part)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelRefused(path=path, reason=f"a {name} does not say how large it is ({error})") from error
        if room < 0:
            raise ModelRefused(path=path, reason="its layers claim more weights than it has")


def _weights_of(part: Mapping[str, Any]) -> int:
    """How many weights a layer claims, but for biases; and that its padding is a border and not a desert."""
    config = part["config"]
    if part["class_name"] == "ZeroPadding2D" and any(not 0 <= one <= MOST_PADDING for one in _flat(config["padding"])):
        raise ValueError(f"padding {config['padding']}")
    if part["class_name"] not in WEIGHTED_LAYERS:
        return 0
    if part["class_name"] == "LayerScale":
        return _count(config["projection_dim"])
    shape = part["build_config"]["input_shape"]
    channels = _count(shape[-1])
    # What would be counted wrong, and nothing here was ever made with.
    if config.get("lora_rank") or config.get("data_format", "channels_last") != "channels_last":
        raise ValueError("channels first, or a rank of its own")
    if part["class_name"].endswith("Normalization"):
        return prod(_count(shape[axis]) for axis in _flat(config["axis"]))
    if part["class_name"] == "Dense":
        return channels * _count(config["units"])
    window = prod(_count(one) for one in config["kernel_size"])
    if part["class_name"] == "Conv2D":
        return window * channels // _count(config["groups"]) * _count(config["filters"])
    deep = channels * _count(config["depth_multiplier"])
    return window * deep + (deep * _count(config["filters"]) if part["class_name"] == "SeparableConv2D" else 0)


def _count(number: object) -> int:
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{number!r} is no count")
    return number


def _flat(numbers: object) -> Iterator[int]:
    if isinstance(numbers, list | tuple):
        for one in numbers:
            yield from _flat(one)
    else:
        yield int(numbers)  # type: ignore[call-overload]  # or TypeError, for what is no number


def _objects(config: object) -> Iterator[Mapping[str, Any]]:
    """Every serialised object in a Keras configuration, at any depth."""
    if isinstance(config, dict):
        if "class_name" in config and "config" in config:
            yield config
        for value in config.values():
            yield from _objects(value)
    elif isinstance(config, list):
        for value in config:
            yield from _objects(value)


def _read_facts(path: Path) -> dict[str, Any]:
    file = path / FACTS_FILE
    if path.is_file():
        raise ModelNotFound(path=path, reason="it is a file, not a model folder")
    if not path.is_dir():
        raise ModelNotFound(path=path, reason="there is no such folder")
    if not file.is_file():
        raise ModelNotFound(path=path, reason=f"the folder has no {FACTS_FILE}")
    if file.stat().st_size > MAX_FACTS_BYTES:
        raise ModelRefused(path=path, reason=f"{FACTS_FILE} is too large to be true")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelRefused(path=path, reason=f"{FACTS_FILE} cannot be read ({error})") from error
    if not isinstance(facts, dict) or facts.get("format_version") not in READABLE_FORMATS:
        raise ModelRefused(
            path=path,
            reason=f"{FACTS_FILE} is not of a format that this vehclass reads ({READABLE_FORMATS[-1]} or below)",
        )
    return facts


def _check_file(path: Path, name: str, digest: str) -> None:
    file = path / name
    if not file.is_file():
        raise ModelRefused(path=path, reason=f"{name} is missing")
    with file.open("rb") as opened:
        if opened.read(len(HDF5_MAGIC)) == HDF5_MAGIC:
            raise ModelRefused(path=path, reason=f"{name} is an HDF5 file, for which Keras has no safe mode")
    if file_digest(file) != digest:
        raise ModelRefused(path=path, reason=f"{name} is not the file that was trained (its sha256 differs)")


def _as_size(sides: Any) -> tuple[int, int]:
    width, height = (int(side) for side in sides)
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise ValueError(f"an input of {width} x {height} pixels")
    return width, height


def _as_task(facts: Mapping[str, Any]) -> Task:
    return Task(
        _as_text(facts["name"]),
        tuple(_as_text(label) for label in facts["labels"]),
        _as_number(facts["temperature"]),
        _as_number(facts["threshold"]),
        tuple(_as_number(one) for one in facts.get("label_thresholds", ())),
    )


def _as_text(value: Any) -> str:
    """What any store can hold; raises ValueError for half a surrogate pair, which JSON can write."""
    text = str(value)
    text.encode()
    return text


def _as_number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):  # which Python's JSON can write
        raise ValueError(f"{number} where a number belongs")
    return number


def _version(facts: Mapping[str, Any]) -> str:
    """Twelve digits of the sha256 over all that decides an answer: files, tasks, input, novelty."""
    keys = ["format_version", "files", "tasks", "input_size", "prepare", *(["novelty"] if "novelty" in facts else [])]
    decisive = {key: facts.get(key) for key in keys}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
