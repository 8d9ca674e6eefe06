"""What to train on, what to train, and how; and who is told how it goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vehclass.records import Task

if TYPE_CHECKING:
    from vehclass.imaging import Pixels
    from vehclass.training.dataset import Catalogue
    from vehclass.training.decoded import Dataset
    from vehclass.training.findings import Finding

PRESETS: Final = ("quick", "balanced", "best")
AUGMENTATIONS: Final = ("none", "light", "vehicle", "strong")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train on, what to train, and how; None leaves a choice to the preset and the data."""

    data: Path
    out: Path
    task_name: str = "label"
    preset: str = "balanced"
    backbone: str = "small"
    weights: str | None = None
    input_side: int | None = None
    epochs: int | None = None
    time_limit: float | None = None  # seconds
    patience: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    augment: str | None = None
    flip: bool = True
    label_smoothing: float = 0.1
    class_weights: str = "auto"
    task_weights: Mapping[str, float] = field(default_factory=dict)
    target_precision: float = 0.95
    precision: str = "auto"
    int8: bool = False
    seed: int = 0
    threads: int = 1
    resume: bool = False
    strict: bool = False
    unlike: Path | None = None
    model_key: Path | None = None  # the public key that must have signed the model that `weights` names
    note: str | None = None  # what the card and the report say first of where care is due

    def as_saved(self) -> dict[str, Any]:
        """The plan as the model keeps it: without what only concerns this machine, or this start."""
        unsaid = ("data", "out", "threads", "resume", "strict", "unlike", "model_key")
        facts = {name: getattr(self, name) for name in self.__slots__ if name not in unsaid}
        weights = self.weights
        return {**facts, "task_weights": dict(self.task_weights), "weights": Path(weights).name if weights else None}


@dataclass(frozen=True, slots=True)
class Material:
    """The data as they are learnt from, and what was found in them."""

    catalogue: "Catalogue"
    dataset: "Dataset"
    side: int
    findings: "tuple[Finding, ...]"
    unlike: "Pixels | None"  # photos of other things, to see how many of them ask for a look
    before: frozenset[str]  # digests of what the weights to start from have learnt from


class Listener:
    """Is told how training goes; a door overrides what it shows."""

    def catalogue(self, catalogue: "Catalogue") -> None:
        """The samples are known."""

    def decoded(self, done: int, total: int) -> None:
        """So many photos are decoded."""

    def findings(self, findings: "Sequence[Finding]") -> None:
        """What the data have to say."""

    def dataset(self, dataset: "Dataset", input_size: tuple[int, int]) -> None:
        """The split is made; some files may have been left out."""

    def step(self, epoch: int, progress: float, loss: float, left: float | None) -> None:
        """A training step is over: the share of the whole that is done, and seconds that are left."""

    def epoch(self, number: int, of: int, logs: Mapping[str, float], tasks: Sequence[Task]) -> None:
        """An epoch is over: losses and accuracies."""

    def stage(self, what: str) -> None:
        """Something other than an epoch begins."""
