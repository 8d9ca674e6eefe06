"""Which version of a model is in production: the rules for changing that, and the record of who did, when and why.

Nothing is locked while somebody decides: the pointer is written only if it is still what the decision was made on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vehclass.errors import ModelRefused, PromotedMeanwhile, PromotionRefused, UsageError
from vehclass.records import iso, now
from vehclass.registry.layout import (
    MAX_POINTER_BYTES,
    POINTER_FILE,
    Reference,
    Registry,
    accuracies,
    facts_of,
    is_version,
    not_in,
)

HISTORY_LENGTH: Final = 100
MAX_WHY: Final = 1000  # characters

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Production:
    """A model's production.json: the version in production, those that rollback goes to, and every change, newest first."""

    version: str | None = None
    before: tuple[str, ...] = ()
    history: tuple[Entry, ...] = ()
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """Who wants a promotion, and on what terms."""

    who: str
    why: str = ""
    min_accuracy: float | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a wish: the entry that is now the newest, and what a person should know besides."""

    name: str
    entry: Entry
    changed: bool = True
    notes: tuple[str, ...] = field(default=())


def read_production(registry: Registry, name: str) -> Production:
    """What is in production, with the etag of the record of it. Raises UsageError when the record is damaged."""
    found = registry.pointer(name)
    if found is None:
        return Production()
    data, etag = found
    try:
        if len(data) >= MAX_POINTER_BYTES:
            raise ValueError("too large")
        document = json.loads(data)
        version, before, history = document["version"], document["before"], document["history"]
        if not all(isinstance(one, str) and is_version(one) for one in (version, *before)):
            raise ValueError("no version")
        if not history or not all(isinstance(one, dict) and is_version(str(one["version"])) for one in history):
            raise ValueError("no history")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            reason=f"{registry.url}/{name}/{POINTER_FILE} is not what `vehclass model promote` writes ({error}). "
            "Restore it, or delete it and promote again."
        ) from error
    return Production(version, tuple(before), tuple(history), etag)


def promote(registry: Registry, name: str, version: str, wish: Wish) -> Change:
    """Points production at a version.

    Raises PromotionRefused where the accuracy speaks against it, PromotedMeanwhile when somebody else was first.
    """
    present = read_production(registry, name)
    facts, _ = facts_of(registry, name, version)
    if present.version == version:
        # It stays where it is, and whoever asks for an accuracy is still told when it has not got it.
        refusals, _ = objections(facts, None, wish.min_accuracy)
        if refusals and not wish.force:
            raise PromotionRefused(key=f"{name}@{version}, which is in production,", reason="; ".join(refusals))
        return Change(name, present.history[0], changed=False)
    try:
        theirs = _facts_if_there(registry, name, present.version)
    except ModelRefused:
        if not wish.force:
            raise
        theirs = None
    refusals, notes = objections(facts, theirs, wish.min_accuracy)
    if refusals and not wish.force:
        raise PromotionRefused(key=f"{name}@{version}", reason="; ".join(refusals))
    entry = {
        **_entry("promote", version, present, wish),
        "accuracy": accuracies(facts),
        "min_accuracy": wish.min_accuracy,
        "forced": bool(refusals),
        "overridden": refusals,
    }
    before = (present.version, *present.before) if present.version else ()
    _write(registry, name, present, entry, before)
    return Change(name, entry, notes=(*notes, *(f"Forced: {refusal}." for refusal in refusals)))


def before_the_present(registry: Registry, name: str) -> tuple[Production, str]:
    """What is in production, and the version that was there before it. Raises UsageError when there was none."""
    present = read_production(registry, name)
    if present.version is None:
        if not registry.versions(name):
            raise not_in(registry, Reference(name))
        raise UsageError(reason=f"No version of {name} was ever promoted in {registry.url}, so there is no way back.")
    if not present.before:
        raise UsageError(
            reason=f"{name}@{present.version} is the first version of {name} that was promoted; there is none before it. "
            f"Promote another: `vehclass model list` has them."
        )
    return present, present.before[0]


def roll_back(registry: Registry, name: str, present: Production, wish: Wish) -> Change:
    """Points production at the version before the present one; done twice, it goes back two.

    `present` is what the decision was made on. Raises PromotedMeanwhile when that has changed.
    """
    facts, _ = facts_of(registry, name, present.before[0])
    entry = {**_entry("rollback", present.before[0], present, wish), "accuracy": accuracies(facts)}
    _write(registry, name, present, entry, present.before[1:])
    return Change(name, entry)


def objections(
    candidate: Mapping[str, Any], present: Mapping[str, Any] | None, min_accuracy: float | None
) -> tuple[list[str], list[str]]:
    """What speaks against a candidate by the accuracy on test photos, and what cannot be said.

    Accuracies of two models are compared only where both were tested on the same photos.
    """
    refusals: list[str] = []
    notes: list[str] = []
    new = accuracies(candidate)
    if min_accuracy is not None:
        tasks = [str(task["name"]) for task in candidate.get("tasks", ())]
        for task in tasks or ["label"]:
            value = new.get(task)
            if value is None:
                refusals.append(f"{task} has no accuracy on test photos, where {min_accuracy:.1%} are asked for")
            elif value < min_accuracy:
                refusals.append(
                    f"{task} is right on {value:.2%} of its test photos, below the {min_accuracy:.1%} asked for"
                )
    if present is None:
        return refusals, notes
    old = accuracies(present)
    mine, theirs = _test_photos(candidate), _test_photos(present)
    if mine is None or theirs is None:
        notes.append("It is not recorded of both models which photos they were tested on, so they are not compared.")
        return refusals, notes
    if mine != theirs:
        notes.append(f"{present.get('version')}, in production, was tested on other photos, so they are not compared.")
        return refusals, notes
    for task in sorted(old.keys() & new.keys()):
        before, after = old[task], new[task]
        if before is not None and (after is None or after < before):
            said = "is not measured" if after is None else f"is right on {after:.2%}"
            refusals.append(
                f"{task} {said} of the test photos on which {present.get('version')}, in production, has {before:.2%}"
            )
    lost = sorted(old.keys() - new.keys())
    if lost:
        notes.append(f"It no longer answers {', '.join(lost)}.")
    return refusals, notes


def _test_photos(facts: Mapping[str, Any]) -> str | None:
    data = facts.get("data")
    digest = data.get("test_sha256") if isinstance(data, dict) else None
    return digest if isinstance(digest, str) else None


def _facts_if_there(registry: Registry, name: str, version: str | None) -> dict[str, Any] | None:
    if version is None or registry.read_facts(name, version) is None:
        return None
    return facts_of(registry, name, version)[0]


def _entry(action: str, version: str, present: Production, wish: Wish) -> Entry:
    return {
        "action": action,
        "version": version,
        "promoted_by": wish.who,
        "promoted_at": iso(now()),
        "why": wish.why[:MAX_WHY],
        "previous": present.version,
    }


def _write(registry: Registry, name: str, present: Production, entry: Entry, before: tuple[str, ...]) -> None:
    document = {
        "format_version": 1,
        "name": name,
        **entry,
        "before": list(before[:HISTORY_LENGTH]),
        "history": [entry, *present.history][:HISTORY_LENGTH],
    }
    content = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    if registry.point(name, content, present.etag):
        return
    latest = read_production(registry, name)
    if latest.version is None:
        raise UsageError(
            reason=f"The record of production of {name} was deleted while this was under way. Promote again."
        )
    first = latest.history[0]
    raise PromotedMeanwhile(
        name=name, version=latest.version, who=first.get("promoted_by"), when=first.get("promoted_at")
    )
