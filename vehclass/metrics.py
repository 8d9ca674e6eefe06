"""A run's figures as a text file that Prometheus' node exporter collects, replaced at once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vehclass.errors import VehclassError

LAST_SUCCESS: Final = "vehclass_last_success_timestamp_seconds"


class NotWritten(VehclassError):
    """The figures could not be written to {path}: {reason}."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What there is to say of a run over a source; times in seconds since 1970."""

    source: str
    exit_code: int
    good: bool
    finished: float
    seconds: float
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by model, by outcome
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds of the threads at each
    oldest_unprocessed: float | None = None


def check(path: Path) -> None:
    """Raises UsageError where no file can be written."""
    from vehclass.errors import UsageError

    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(reason=f"--metrics-file: {path.parent} is no folder that can be written to.")


def write(path: Path, figures: Figures) -> None:
    """Writes the figures, in a new file that takes the place of the old one; raises NotWritten.

    The last success is remembered from the old file, where this run is none.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()

    def gauge(name: str, meaning: str, value: float, **labels: str) -> None:
        made = gauges.get(name)
        if made is None:
            made = gauges[name] = Gauge(name, meaning, ["source", *labels], registry=registry)
        made.labels(source=figures.source, **labels).set(value)

    gauges: dict[str, Gauge] = {}
    for model, outcomes in figures.images.items():
        for outcome, count in outcomes.items():
            gauge("vehclass_images", "Images of the last run by outcome.", count, model=model, outcome=outcome)
    for stage, seconds in figures.stages.items():
        gauge("vehclass_stage_seconds", "Seconds of all threads at a stage of the last run.", seconds, stage=stage)
    gauge("vehclass_run_seconds", "How long the last run took.", figures.seconds)
    gauge("vehclass_run_exit_code", "The exit code of the last run.", figures.exit_code)
    gauge("vehclass_run_finished_timestamp_seconds", "When the last run ended.", figures.finished)
    success = figures.finished if figures.good else last_success(path, figures.source)
    if success is not None:
        gauge(LAST_SUCCESS, "When a run last came to its end.", success)
    if figures.oldest_unprocessed is not None:
        meaning = "When the oldest image that the last run has left was modified."
        gauge("vehclass_oldest_unprocessed_timestamp_seconds", meaning, figures.oldest_unprocessed)
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise NotWritten(path=path, reason=error.strerror or str(error)) from error


def last_success(path: Path, source: str) -> float | None:
    """When a run over a source last came to its end, by a file of figures; None where it does not say."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        for family in text_string_to_metric_families(path.read_text(encoding="utf-8")):
            for sample in family.samples:
                if sample.name == LAST_SUCCESS and sample.labels.get("source") == source:
                    return float(sample.value)
    except (OSError, ValueError):  # none there, or none of ours
        pass
    return None
