"""Which arithmetic a CPU runs a network in: 32 bits, unless fewer were asked for or measured to give the same answers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vehclass.errors import UsageError

AUTO, F32, BF16, INT8 = "auto", "f32", "bf16", "int8"
PRECISIONS: Final = (AUTO, F32, BF16, INT8)
# The quickest first. Where a processor multiplies bfloat16 by itself it is as quick as 8 bits, and closer to 32.
FEWER_BITS: Final = (BF16, INT8)
LEAST_PHOTOS: Final = 100  # that were compared: none of fewer says little, and none of 100 still allows 3 in 100
MOST_CHANGED: Final = 0.001  # of the photos may get another label
MOST_REVIEWS: Final = 0.01  # of the photos may be sent to review by only one of them
MOST_APART: Final = 0.01  # of a probability, as a mean over photos of each one's greatest difference


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, and why it was taken, as a run's record says it."""

    name: str
    why: str


def choose(facts: Mapping[str, Any], asked: str, capabilities: Collection[str]) -> Choice:
    """The precision for a model by what its model.json measured, for a processor with OpenVINO's `capabilities`.

    Raises UsageError for one that is asked for and cannot be had.
    """
    forms = facts.get("precisions") or {}
    if asked == BF16 and "BF16" not in capabilities:
        raise UsageError(reason="--precision bf16: this processor has no bfloat16. Use f32, or auto.")
    if asked == INT8 and INT8 not in forms:
        raise UsageError(
            reason="--precision int8: this model has no such form. Train it where `pip install 'vehclass[int8]'` was run."
        )
    if asked != AUTO:
        return Choice(asked, "asked for")
    reasons = []
    for name in FEWER_BITS:
        if name == BF16 and "BF16" not in capabilities:
            reasons.append("the processor has no bf16")
        elif not forms.get(name):
            reasons.append(f"{name} was not measured when the model was made")
        elif (doubt := _doubt(forms[name])) is not None:
            reasons.append(f"{name} {doubt}")
        else:
            return Choice(name, _proof(forms[name]))
    return Choice(F32, "; ".join(reasons))


def _doubt(measured: Mapping[str, Any]) -> str | None:
    """Why a precision is not taken by itself; None when nothing speaks against it."""
    photos, changed, apart = measured["photos"], measured["labels_changed"], measured["mean_difference"]
    reviews = measured["reviews_changed"]
    if photos < LEAST_PHOTOS:
        return f"was compared on {photos} photos only"
    if changed > MOST_CHANGED * photos:
        return f"changes {changed / photos:.1%} of the labels"
    if apart > MOST_APART:
        return f"moves probabilities by {apart:.3f} on average"
    if reviews > MOST_REVIEWS * photos:
        return f"changes for {reviews / photos:.1%} of the photos whether they ask for a look"
    return None


def _proof(measured: Mapping[str, Any]) -> str:
    return (
        f"{measured['labels_changed']} of {measured['photos']} labels differ from f32, "
        f"probabilities by {measured['mean_difference']:.4f} on average"
    )
