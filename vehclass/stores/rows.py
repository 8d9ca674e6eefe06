"""What every store does to rows before they are written and after they are read, whatever holds them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import orjson

from vehclass.errors import StoreError
from vehclass.records import Failure, ImageFacts, ImageRef, ModelInfo, Outcome, Prediction, Saved, Task


def text(name: str) -> str:
    """A name as a database can hold it: bytes that are not UTF-8, and NUL, are shown as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def as_json(rows: object) -> str:
    """Rows as one parameter of a statement."""
    return orjson.dumps(rows).decode()


def check_numbers(url: str, outcomes: Iterable[Outcome]) -> None:
    """Raises StoreError when a probability is none: not a number, infinite, or outside of 0 to 1."""
    for one in outcomes:
        for answer in one.predictions:
            shares = (answer.probability, *answer.probabilities)
            # `min` and `max` pass over what is not a number; a sum does not.
            if min(shares) < 0 or max(shares) > 1 or math.isnan(sum(shares)):
                share = next(share for share in shares if not 0 <= share <= 1)
                reason = f"{answer.task} of {text(one.ref.name)} came with a probability of {share}"
                raise StoreError(url=url, reason=reason)


def as_models(rows: Iterable[Mapping[str, Any]]) -> list[ModelInfo]:
    """Models from rows of (version, name, task_position, task, temperature, threshold, label), in order."""
    models = []
    for (version, name), of_model in groupby(rows, key=lambda row: (row["version"], row["name"])):
        tasks = []
        for _, of_task in groupby(of_model, key=lambda row: row["task_position"]):
            labels = list(of_task)
            first = labels[0]
            names = tuple(row["label"] for row in labels)
            tasks.append(Task(first["task"], names, first["temperature"], first["threshold"]))
        models.append(ModelInfo(name, version, tuple(tasks), (0, 0), ""))
    return models


def as_saved(
    models: Mapping[str, ModelInfo],
    outcomes: Iterable[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    probabilities: Iterable[Mapping[str, Any]],
) -> list[Saved]:
    """Outcomes put together from their rows; `models` by version."""
    tops: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for row in predictions:
        tops.setdefault((row["image_id"], row["model"]), {})[row["task_position"]] = row
    shares: dict[tuple[str, str, int], list[float]] = {}
    for row in probabilities:
        shares.setdefault((row["image_id"], row["model"], row["task_position"]), []).append(row["probability"])
    found = []
    for row in outcomes:
        key = (row["image_id"], row["model"])
        tasks = models[row["model"]].tasks
        answers = tuple(
            Prediction(
                tasks[position].name,
                tasks[position].labels[top["label_position"]],
                top["probability"],
                bool(top["needs_review"]),
                tuple(shares[(*key, position)]),
            )
            for position, top in sorted(tops.get(key, {}).items())
        )
        found.append(as_one_saved(row, answers))
    return found


def as_one_saved(row: Mapping[str, Any], answers: Sequence[Prediction]) -> Saved:
    """One outcome from its own row and its answers."""
    failed = row["status"] != "classified"
    facts = ImageFacts(row["width"], row["height"], row["format"], row["sha256"]) if row["width"] is not None else None
    failure = Failure(row["stage"], row["code"], row["message"], row["status"] == "quarantined") if failed else None
    modified_at = datetime.fromisoformat(row["modified_at"])
    ref = ImageRef(row["image_id"], row["source"], row["name"], row["image_etag"], row["size"], modified_at)
    outcome = Outcome(ref, facts, () if failed else tuple(answers), failure)
    about = (row["status"], row["attempts"], row["run_id"], row["finished_at"], row["first_seen_at"])
    return Saved(outcome, row["model"], row["etag"], *about)
