"""Says in plain sentences what a model is for, what it is not for, and where its own figures call for care."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

FEW_TEST_PHOTOS: Final = 100
FEW_OF_A_LABEL: Final = 10  # test photos, below which a label's figures say next to nothing
LOW_RECALL: Final = 0.7
POORLY_CALIBRATED: Final = 0.05
MOST_NAMED: Final = 12
# Where the name of an option is not that of the plan's field.
OPTIONS: Final = {"task_name": "task", "input_side": "input-size", "task_weights": "task-weight"}

ON: Final = frozenset({"flip"})  # unless told


def purpose(facts: Mapping[str, Any]) -> list[str]:
    """What the model is for."""
    said = [f"Says for one photo of a vehicle: {'; '.join(question(task) for task in facts.get('tasks', ()))}."]
    size = facts.get("input_size")
    photos = sum((facts.get("data") or {}).get("photos", {}).values())
    if photos and size:
        said.append(
            f"Meant for photos like the {photos:,} it was made with: the same kind of vehicle, camera and surroundings. "
            f"It sees them at {size[0]} x {size[1]} pixels."
        )
    said.append("Sorts many photos without a person; what it marks needs_review is for a person's eye.")
    return said


def question(task: Mapping[str, Any]) -> str:
    """A task and its labels, as many as can be read at a glance."""
    labels = task["labels"]
    return f"{task['name']} ({listed(labels) if len(labels) <= MOST_NAMED else f'{len(labels):,} labels'})"


def no_purpose(facts: Mapping[str, Any]) -> list[str]:
    """What the model is not for."""
    said = [
        "It is not for decisions about people, money or safety (a claim, a price, whether a vehicle may be driven) "
        "that nobody looks at.",
        "It is not for photos of another kind than its own, before `vehclass evaluate` has measured it on some that "
        "are labelled.",
        "It gives one answer for a whole photo: it does not find, count or outline vehicles, and reads no number plates.",
    ]
    if facts.get("novelty"):
        said.append(
            "It always answers with one of its labels. A photo very unlike those it learnt from is marked needs_review, "
            "but not every such photo is noticed."
        )
    else:
        said.append(
            "It always answers with one of its labels, also for a photo that shows none of them, and does not notice "
            "that by itself."
        )
    return said


def limits(facts: Mapping[str, Any]) -> list[str]:
    """Where the model's own figures and data call for care."""
    data = facts.get("data") or {}
    said = []
    note = (facts.get("plan") or {}).get("note")
    if note:
        said.append(note)
    test = (facts.get("evaluated") or {}).get("photos", data.get("photos", {}).get("test"))
    if test is not None and test < FEW_TEST_PHOTOS:
        said.append(f"Only {test:,} photos were left to test with: every figure here is rough.")
    if data.get("left_out"):
        count = len(data["left_out"])
        said.append(
            f"{count:,} file{'s' if count != 1 else ''} could not be decoded and {'were' if count != 1 else 'was'} left out."
        )
    for task, of in (facts.get("metrics") or {}).items():
        said += _limits_of_task(task, of)
    said += _limits_of_novelty(facts.get("novelty") or {})
    return said


def _limits_of_task(task: str, of: Mapping[str, Any]) -> Iterator[str]:
    labels = of.get("per_label", ())
    few = [row["label"] for row in labels if row["support"] < FEW_OF_A_LABEL]
    weak = [
        (row["recall"], f"{row['label']} ({row['recall']:.0%})")
        for row in labels
        if row["support"] >= FEW_OF_A_LABEL and row["recall"] < LOW_RECALL
    ]
    if weak:
        names = listed([text for _, text in sorted(weak)])
        yield f"{task}: of these labels it finds less than {LOW_RECALL:.0%} of the photos: {names}."
    if few:
        yield f"{task}: fewer than {FEW_OF_A_LABEL} test photos, so that little can be said of {listed(few)}."
    if (of.get("ece") or 0) > POORLY_CALIBRATED:
        yield f"{task}: probabilities are off by {of['ece']:.1%} on average, so take them as a rank, not as a share."


def _limits_of_novelty(novelty: Mapping[str, Any]) -> Iterator[str]:
    kept = novelty.get("kept")
    if isinstance(kept, int | float):
        yield f"Of ordinary test photos, {1 - kept:.1%} are taken for something unlike its photos, and go to review."
    for kind, share in (novelty.get("examples") or {}).items():
        if isinstance(share, int | float):
            yield f"Of pictures unlike its photos ({kind}), {share:.0%} go to review."


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Names in one line, the first ones where there are many."""
    rest = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {rest:,} more" if rest > 0 else "")


def command(facts: Mapping[str, Any]) -> str | None:
    """The command line that makes such a model, from its plan; None without one."""
    plan = facts.get("plan")
    if not isinstance(plan, Mapping):
        return None
    words = ["vehclass", "train", "DATA", "--out", str(facts.get("name", "MODEL"))]
    for name, value in plan.items():
        option = str(OPTIONS.get(name, name)).replace("_", "-")
        if isinstance(value, bool):
            if value != (name in ON):
                words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, Mapping):  # --task-weight view=0.5
            words += [word for key, one in value.items() for word in (f"--{option}", f"{key}={one:g}")]
        elif isinstance(value, str | int | float):
            words += [f"--{option}", f"{value:g}s" if name == "time_limit" else str(value)]
    return shlex.join(words)
