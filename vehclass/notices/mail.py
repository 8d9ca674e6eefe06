"""Sends a notice by mail, over an encrypted connection unless that is turned off by name."""

import smtplib
import ssl
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Final

from vehclass.errors import UsageError
from vehclass.notices import Notice, NoticeOptions, NotSent

TIMEOUT: Final = 20.0


def check(options: NoticeOptions) -> None:
    """Raises UsageError where something is missing that a mail needs."""
    if not options.smtp_host:
        raise UsageError(reason="mail_to is set, but no smtp_host that sends mail; set VEHCLASS_SMTP_HOST.")
    if not options.mail_to or not options.mail_from:
        raise UsageError(reason="A mail needs mail_to and mail_from; set VEHCLASS_MAIL_TO and VEHCLASS_MAIL_FROM.")
    for address in (*options.mail_to, options.mail_from):
        try:
            if not Address(addr_spec=address).domain:
                raise ValueError
        except (ValueError, IndexError) as error:
            raise UsageError(reason=f"{address!r} is no mail address.") from error
    if options.smtp_password and not options.smtp_user:
        raise UsageError(reason="VEHCLASS_SMTP_PASSWORD is set, but no VEHCLASS_SMTP_USER.")
    if options.smtp_password and options.smtp_security == "none" and not options.allow_http:
        raise UsageError(reason="smtp_security none would send the password in the clear; use starttls or tls.")


def send(notice: Notice, options: NoticeOptions) -> None:
    """Sends a notice; raises NotSent."""
    mail = EmailMessage()
    mail["Subject"] = " ".join(f"{'' if notice.good else 'FAILED '}{notice.title}".split())[:200]
    mail["From"], mail["To"] = options.mail_from, ", ".join(options.mail_to)
    mail["Date"], mail["Message-ID"] = formatdate(), make_msgid(domain="vehclass.invalid")
    mail["Auto-Submitted"] = "auto-generated"  # so that nobody's absence is answered to us
    mail.set_content("\n".join([notice.title, "", *notice.lines, ""]))
    try:
        with _connected(options) as server:
            if options.smtp_user:
                server.login(options.smtp_user, options.smtp_password or "")
            server.send_message(mail)
    except (smtplib.SMTPException, OSError) as error:
        said = getattr(error, "smtp_code", None)
        raise NotSent(way="mail", reason=f"{type(error).__name__}{f' {said}' if said else ''}") from error


def _connected(options: NoticeOptions) -> smtplib.SMTP:
    host, port, context = options.smtp_host or "", options.smtp_port, ssl.create_default_context()
    if options.smtp_security == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT, context=context)
    server = smtplib.SMTP(host, port, timeout=TIMEOUT)
    if options.smtp_security == "starttls":
        try:
            server.starttls(context=context)
        except BaseException:
            server.close()
            raise
    return server
