"""Tells people how a run ended: by webhook and by mail. A notice that cannot be sent never fails the run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vehclass.errors import VehclassError


@dataclass(frozen=True, slots=True)
class Notice:
    """How a run ended: a line, some more for people, and all of it for machines."""

    good: bool
    title: str
    lines: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoticeOptions:
    """Where notices go; without a webhook and a recipient, nowhere."""

    webhook: str | None = None
    webhook_format: str = "auto"
    mail_to: tuple[str, ...] = ()
    mail_from: str | None = None
    smtp_host: str | None = None
    smtp_port: int = 587
    smtp_security: str = "starttls"
    smtp_user: str | None = None
    smtp_password: str | None = None
    allow_http: bool = False


class NotSent(VehclassError):
    """A notice could not be sent by {way}: {reason}."""


def check(options: NoticeOptions) -> None:
    """Raises UsageError where notices could never be sent as they are set up."""
    from vehclass.notices import mail, webhook

    if options.webhook:
        webhook.check(options)
    if options.mail_to or options.smtp_host:
        mail.check(options)


def send(notice: Notice, options: NoticeOptions) -> Iterator[NotSent]:
    """Sends a notice every way that is set up; yields what went wrong."""
    from vehclass.notices import mail, webhook

    for wanted, way in ((options.webhook, webhook.send), (options.mail_to, mail.send)):
        if wanted:
            try:
                way(notice, options)
            except NotSent as error:
                yield error
