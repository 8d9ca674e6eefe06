"""What is said of a run beyond this terminal: notices to people, and figures for Prometheus."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any, Final

from vehclass.cli import show, without_secrets
from vehclass.errors import ExitCode, Interrupted, UsageError, VehclassError
from vehclass.notices import Notice, NoticeOptions
from vehclass.settings import Settings, collector_is_named

if TYPE_CHECKING:
    from vehclass.batch.pipeline import Watch

GOOD: Final = (ExitCode.DONE, ExitCode.SOME_IMAGES_FAILED)
OUTCOMES: Final = ("classified", "failed", "quarantined", "needs_review")

log = logging.getLogger("vehclass")


@dataclass(slots=True)
class Ending:
    """What is known of a run when it ends: its documents as for --json, and what was watched."""

    source: str
    runs: list[Mapping[str, Any]] = field(default_factory=list)
    watch: "Watch | None" = None

    @property
    def name(self) -> str:
        """The source's last part, for a line."""
        return self.source.split("?")[0].rstrip("/").rpartition("/")[2]


def notice_options(settings: Settings) -> NoticeOptions:
    """Where notices go, checked; raises UsageError."""
    from vehclass.notices import check

    found = NoticeOptions(
        webhook=settings.webhook,
        webhook_format=settings.webhook_format,
        mail_to=settings.mail_to,
        mail_from=settings.mail_from,
        smtp_host=settings.smtp_host,
        smtp_port=settings.smtp_port,
        smtp_security=settings.smtp_security,
        smtp_user=settings.smtp_user,
        smtp_password=settings.smtp_password,
        allow_http=settings.allow_http,
    )
    if settings.notify != "never":
        check(found)
    return found


@contextmanager
def told(settings: Settings, source: str) -> Iterator[Ending]:
    """Tells how the block ended, by the settings, whichever way that was."""
    options, ending, began = notice_options(settings), Ending(source), time.monotonic()
    if settings.metrics_file:
        from vehclass import metrics

        metrics.check(Path(settings.metrics_file))
    try:
        yield ending
    except BaseException as error:
        known = isinstance(error, VehclassError | Interrupted)
        code = int(error.exit_code) if isinstance(error, VehclassError | Interrupted) else int(ExitCode.FAILED)
        message = without_secrets(str(error) if known else type(error).__name__)
        _tell_machines(settings, ending, code, time.monotonic() - began, message)
        # Whoever sits there and mistyped, or pressed Ctrl-C, knows.
        if not isinstance(error, UsageError) and code != 128 + SIGINT:
            tell(settings, options, failure(ending.name, message, code))
        raise
    notice = success(ending.name, ending.runs)
    _tell_machines(settings, ending, notice.document["exit_code"], time.monotonic() - began)
    tell(settings, options, notice)


def tell(settings: Settings, options: NoticeOptions, notice: Notice) -> None:
    """Sends a notice, if the settings want one of its kind; says what went wrong, and goes on."""
    from vehclass.notices import send

    if settings.notify == "never" or (notice.good and settings.notify == "on-failure"):
        return
    for error in send(notice, options):
        log.warning("%s", error)


def failure(name: str, message: str, code: int, **facts: Any) -> Notice:
    """A run that did not come to its end."""
    said = show.plain(without_secrets(message))
    return Notice(False, f"vehclass: {name} did not end well", (said,), {"exit_code": code, "message": said, **facts})


def success(name: str, runs: Sequence[Mapping[str, Any]], **facts: Any) -> Notice:
    """A run that came to its end, some images failed or not."""
    done, failed, look = (sum(int(run.get(one, 0)) for run in runs) for one in ("classified", "failed", "needs_review"))
    title = f"vehclass: {name}: {done:,} classified, {failed:,} failed, {look:,} to review"
    lines = []
    for run in runs:
        lines.append(f"Run {run['run_id']} of {run['model']}: {run['new']:,} new of {run['listed']:,}.")
        lines += [f"{one['images']:,} failed: {one['stage']} {one['code']}" for one in run.get("failures", ())[:10]]
        top = sorted(run.get("summary", ()), key=lambda row: -row["images"])[:10]
        lines += [f"{row['task']} {row['label']}: {row['images']:,}" for row in top]
    code = ExitCode.SOME_IMAGES_FAILED if failed else ExitCode.DONE
    return Notice(True, title, tuple(map(show.plain, lines)), {"exit_code": int(code), "runs": list(runs), **facts})


def _tell_machines(settings: Settings, ending: Ending, code: int, seconds: float, message: str | None = None) -> None:
    """Writes and sends a run's figures, where somebody wants them; says what went wrong, and goes on."""
    traced = collector_is_named()
    if not settings.metrics_file and not traced:
        return
    from vehclass.metrics import Figures, NotWritten, write

    watch = ending.watch
    oldest = watch.progress.oldest_left() if watch else None
    figures = Figures(
        source=without_secrets(ending.source),
        exit_code=code,
        good=code in GOOD,
        finished=time.time(),
        seconds=seconds,
        images={run["model"]: {one: int(run[one]) for one in OUTCOMES} for run in ending.runs},
        stages={name: spent.seconds for name, spent in watch.profile.stages.items()} if watch else {},
        oldest_unprocessed=oldest.timestamp() if oldest else None,
    )
    if settings.metrics_file:
        try:
            write(Path(settings.metrics_file), figures)
        except NotWritten as error:
            log.warning("%s", error)
    if traced:
        from vehclass.telemetry import NotExported, send

        try:
            send(figures, "vehclass classify-batch", message)
        except NotExported as error:
            log.warning("%s", error)
