"""An outcome as a Cosmos DB document and back: one document per image and model, with all that is known of both."""

from collections.abc import Iterator, Mapping
from typing import Any

from vehclass.records import ModelInfo, Outcome, Prediction, ResultFilter, Saved, iso
from vehclass.stores.cosmos_account import Document
from vehclass.stores.rows import as_one_saved, text


def document_id(image_id: str, version: str) -> str:
    """The id of an image's document for a model; the partition is the image's."""
    return f"{image_id}-{version}"


def as_document(
    one: Outcome, model: ModelInfo, *, status: str, attempts: int, run_id: str, at: str, seq: int
) -> Document:
    """The document of an outcome. `seq` is a number that grows, by which results are read in order."""
    ref, facts, failure = one.ref, one.facts, one.failure
    answers = {} if failure else {answer.task: answer for answer in one.predictions}
    return {
        "id": document_id(ref.image_id, model.version),
        "image_id": ref.image_id,
        "source": ref.source,
        "name": text(ref.name),
        "etag": ref.etag,
        "size": ref.size,
        "modified_at": iso(ref.modified_at),
        **(
            {"width": facts.width, "height": facts.height, "format": facts.format, "sha256": facts.sha256}
            if facts
            else {}
        ),
        "model": model.key,
        "version": model.version,
        "status": status,
        "attempts": attempts,
        "run_id": run_id,
        "finished_at": at,
        "seq": seq,
        **({"stage": failure.stage, "code": failure.code, "message": text(failure.message)} if failure else {}),
        "needs_review": any(answer.needs_review for answer in answers.values()),
        "predictions": {
            name: {"label": answer.label, "probability": answer.probability, "needs_review": answer.needs_review}
            for name, answer in answers.items()
        },
        "probabilities": {
            task.name: dict(zip(task.labels, answers[task.name].probabilities, strict=True))
            for task in model.tasks
            if task.name in answers
        },
    }


def as_saved(document: Mapping[str, Any], model: ModelInfo) -> Saved:
    """A document as what moves between stores."""
    answers = []
    for task in model.tasks:
        top = document["predictions"].get(task.name)
        if top is not None:
            shares = document["probabilities"][task.name]
            in_order = tuple(float(shares[label]) for label in task.labels)  # in JSON, 1.0 may be written as 1
            answers.append(
                Prediction(task.name, top["label"], float(top["probability"]), top["needs_review"], in_order)
            )
    facts = ("width", "height", "format", "sha256", "stage", "code", "message")
    row = {**dict.fromkeys(facts), **document, "model": document["version"], "image_etag": document["etag"]}
    return as_one_saved({**row, "first_seen_at": document.get("first_seen_at", document["finished_at"])}, answers)


def rows_of(what: str, document: Mapping[str, Any], model: ModelInfo, wanted: ResultFilter) -> Iterator[dict[str, Any]]:
    """The rows of `what` in a document that a filter lets pass, with the columns that every store gives."""
    if what == "failures":
        columns = ("name", "source", "image_id", "model", "stage", "code", "message", "attempts")
        quarantined = int(document["status"] == "quarantined")
        about = {"etag": document["etag"], "run_id": document["run_id"], "failed_at": document["finished_at"]}
        yield {**{name: document[name] for name in columns}, "quarantined": quarantined, **about}
        return
    named = {name: document[name] for name in ("name", "source", "image_id", "model")}
    about = {"etag": document["etag"], "run_id": document["run_id"], "classified_at": document["finished_at"]}
    for task in model.tasks:
        top = document["predictions"].get(task.name)
        if top is None or wanted.task not in (None, task.name):
            continue
        if wanted.needs_review is not None and wanted.needs_review != top["needs_review"]:
            continue
        best = float(top["probability"])  # in JSON, 1.0 may be written as 1
        if what == "predictions":
            facts = {name: document.get(name) for name in ("width", "height", "sha256")}
            answer = {"label": top["label"], "probability": best, "needs_review": int(top["needs_review"])}
            if _passes(wanted, top["label"], best):
                yield {**named, "task": task.name, **answer, **about, **facts}
        else:
            for label in task.labels:
                share = float(document["probabilities"][task.name][label])
                if _passes(wanted, label, share):
                    yield {**named, "task": task.name, "label": label, "probability": share, **about}


def _passes(wanted: ResultFilter, label: str, probability: float) -> bool:
    return wanted.label in (None, label) and wanted.min_probability <= probability <= wanted.max_probability
