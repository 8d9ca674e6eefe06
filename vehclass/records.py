"""The nouns of vehclass as frozen records; every other module speaks in them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime


def now() -> datetime:
    """The present in UTC."""
    return datetime.now(UTC)


def iso(when: datetime) -> str:
    """A time as ISO 8601 in UTC with milliseconds: text that sorts as the times do."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def image_id(source: str, name: str) -> str:
    """The key of an image: a 128-bit hash of its source's canonical URL and its name there.

    A folder may hold names that are not valid UTF-8; their bytes are hashed as they are.
    """
    text = f"{source}\n{name}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image as a listing names it; the etag changes when the content does."""

    image_id: str
    source: str
    name: str
    etag: str
    size: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the bytes themselves say: size as a person sees it, format by magic bytes, content hash."""

    width: int
    height: int
    format: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Task:
    """One question put to a photo, with its closed and ordered answers.

    Probabilities are softmax(logits / temperature); a top probability under the threshold asks for a
    person's eye. Where there were photos enough to choose one, a label has a threshold of its own.
    """

    name: str
    labels: tuple[str, ...]
    temperature: float = 1.0
    threshold: float = 0.0
    label_thresholds: tuple[float, ...] = ()

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The threshold that counts for each label."""
        return self.label_thresholds or (self.threshold,) * len(self.labels)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model without loading it; the version is a digest of its content.

    With a `novelty_limit`, the network's last column says how unlike the photos it learnt from a photo is;
    above the limit every answer asks for a person's eye.
    """

    name: str
    version: str
    tasks: tuple[Task, ...]
    input_size: tuple[int, int]  # width, height
    created_at: str
    novelty_limit: float | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """How rows name the model: NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @property
    def label_count(self) -> int:
        """Labels of all tasks together: so many probabilities an image has."""
        return sum(len(task.labels) for task in self.tasks)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one task: `probabilities` in the order of the task's labels, summing to 1."""

    task: str
    label: str
    probability: float
    needs_review: bool
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no prediction: where it stopped, a code and a sentence."""

    stage: str
    code: str
    message: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """One photo in, one of these out: either predictions, one a task, or a failure."""

    ref: ImageRef
    facts: ImageFacts | None = None
    predictions: Sequence[Prediction] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """An outcome whole, as a store holds it: what moves when results move to another store.

    `outcome.ref` is the image as the store knows it now; `etag` is the content that the outcome is about.
    """

    outcome: Outcome
    model: str  # its version
    etag: str
    status: str
    attempts: int
    run_id: str
    finished_at: str
    first_seen_at: str

    @property
    def key(self) -> tuple[str, str]:
        """What there is one outcome of: an image and a model's version."""
        return self.outcome.ref.image_id, self.model

    def digest(self) -> int:
        """A 128-bit hash of all that was said of the image; equal in every store that holds the same.

        Probabilities count to nine digits, which is more than a network in single precision has.
        """
        one = self.outcome
        why = (one.failure.stage, one.failure.code, one.failure.message) if one.failure else None
        said = [
            (
                p.task,
                p.label,
                f"{p.probability:.9g}",
                bool(p.needs_review),
                [f"{share:.9g}" for share in p.probabilities],
            )
            for p in one.predictions
        ]
        text = repr((self.key, one.ref.source, one.ref.name, self.etag, self.status, why, self.attempts, said))
        both = f"{text} {self.run_id} {self.finished_at}".encode("utf-8", "surrogateescape")
        return int.from_bytes(hashlib.blake2b(both, digest_size=16).digest())


@dataclass(frozen=True, slots=True)
class RunTicket:
    """What entitles a run to write: its id, and the fencing number of its lease.

    `after_death` says that whoever held the lease before never gave it back.
    """

    run_id: str
    lease_key: str
    fence: int
    after_death: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """How many images a run has finished, as the store says."""

    classified: int
    failed: int
    quarantined: int
    needs_review: int

    @property
    def done(self) -> int:
        """Images with an outcome, whichever."""
        return self.classified + self.failed


@dataclass(frozen=True, slots=True)
class LeaseClaim:
    """A run's wish to be the only one on a source with a model, for so many seconds at a time."""

    key: str
    run_id: str
    holder: str
    seconds: int
    is_dead: Callable[[str], bool] = lambda holder: False


@dataclass(frozen=True, slots=True)
class RunStart:
    """What is known of a run when it begins."""

    run_id: str
    command: str
    source: str
    model: str
    settings: str
    host: str


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended: status done, failed or interrupted; and where its time went, as JSON."""

    status: str
    exit_code: int
    message: str | None
    listed: int
    new: int
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class ScheduleNote:
    """What a scheduler leaves of a job each minute: that it is alive, and what comes next (ISO 8601 in UTC)."""

    name: str
    times: str
    command: str
    holder: str
    next_due: str | None


@dataclass(frozen=True, slots=True)
class ResultFilter:
    """Which results to read; None leaves a thing open. Times are ISO 8601 in UTC."""

    run_id: str | None = None
    model: str | None = None
    task: str | None = None
    label: str | None = None
    min_probability: float = 0.0
    max_probability: float = 1.0
    needs_review: bool | None = None
    since: str | None = None
    until_time: str | None = None
    name: str | None = None
