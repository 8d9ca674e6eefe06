"""How the figures of a model look on a screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from vehclass.cli import show

MOST_LABELS = 30  # in the table on the screen; --json and --report have all
MOST_PAIRS = 10
MOST_UNUSABLE = 10


def print_figures(document: Mapping[str, Any]) -> None:
    """The figures for a person."""
    left = ", ".join(f"{count:,} {split}" for split, count in document["left_out"].items())
    show.say(f"{document['model']} on {document['photos']:,} photos of {document['data']}.")
    if left:
        why = "which it learnt from" if document["split"] == "auto" else f"which are not {document['split']}"
        show.say(f"Left out: {left}, {why}.")
    for note in document["notes"]:
        show.note(note)
    for one in document["unusable"][:MOST_UNUSABLE]:
        show.note(show.plain(f"not used: {one['file']}: {one['message']}"))
    if len(document["unusable"]) > MOST_UNUSABLE:
        show.note(f"... and {len(document['unusable']) - MOST_UNUSABLE:,} more that cannot be used; --json names all")
    show.say()
    _print_overall(document["tasks"])
    for task, of in document["tasks"].items():
        if of["support"]:
            _print_task(task, of)
    speed = document["latency"]
    show.say(
        f"Forward pass on {speed['device']}: {speed['ms_one_image']:.1f} ms for one image alone, "
        f"{speed['images_per_second']:,.0f} images/s in batches of {speed['batch_size']}, without decoding."
    )
    for one in document["comparison"]:
        show.say()
        shares = f"{show.percent(one['accuracy'][0])} against {show.percent(one['accuracy'][1])}"
        show.say(show.plain(f"{one['task']}: {shares}. {one['sentence']}"))


def _print_overall(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    ks = sorted({k for of in tasks.values() for k in of["top_k"]}, key=int)
    tops = [f"top {k}" for k in ks]
    rows = [
        (
            task,
            f"{of['support']:,}",
            show.percent(of["accuracy"]),
            _between(of["intervals"]["accuracy"]),
            *(show.percent(of["top_k"].get(k)) for k in ks),
            show.percent(of["macro_f1"]),
            show.percent(of["coverage"]),
            show.percent(of["precision_when_sure"]),
            _between(of["intervals"]["precision_when_sure"]),
            show.percent(of["ece"]),
        )
        for task, of in tasks.items()
    ]
    columns = ("task", "photos", "right", "95 %", *tops, "F1", "sure", "right then", "95 % ", "ECE")
    show.table(None, columns, rows, right=columns[1:])
    for task, of in tasks.items():
        if of["support"]:
            show.say(
                show.plain(
                    f"{task}: {show.percent(1 - of['coverage'])} to review; calibration error "
                    f"{show.percent(of['ece_uncalibrated'])} before and {show.percent(of['ece'])} after temperature "
                    f"scaling, log-likelihood loss {of['nll_uncalibrated']:.3f} and {of['nll']:.3f}."
                )
            )
    show.say()


def _between(interval: Sequence[float] | None) -> str:
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}" if interval else ""


def _print_task(task: str, of: Mapping[str, Any]) -> None:
    """A task's labels, the worst first where there are many, and what is taken for what."""
    labels = [row for row in of["per_label"] if row["support"] or row["answered"]]
    title = task
    if len(labels) > MOST_LABELS:
        title = f"{task}: the {MOST_LABELS} labels of {len(labels):,} with the lowest F1"
        labels = sorted(labels, key=lambda row: row["f1"] or 0.0)[:MOST_LABELS]
    show.table(
        show.plain(title),
        ("label", "photos", "precision", "recall", "95 %", "F1", "sure"),
        [
            (
                row["label"],
                f"{row['support']:,}",
                show.percent(row["precision"]),
                show.percent(row["recall"]),
                _between(row["intervals"]["recall"]),
                show.percent(row["f1"]),
                show.percent(row["coverage"]),
            )
            for row in labels
        ],
        right=("photos", "precision", "recall", "95 %", "F1", "sure"),
    )
    if of["confused"]:
        show.table(
            None,
            ("is", "taken for", "photos"),
            [(pair["truth"], pair["taken_for"], f"{pair['count']:,}") for pair in of["confused"][:MOST_PAIRS]],
            right=("photos",),
        )
