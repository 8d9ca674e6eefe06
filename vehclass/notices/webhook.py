"""Posts a notice as JSON: to Slack and Teams as they want it, to anything else whole."""

import random
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_before_delay

from vehclass.errors import UsageError
from vehclass.notices import Notice, NoticeOptions, NotSent

TRIES: Final = 5
TIMEOUT: Final = (5.0, 10.0)  # seconds to connect, and of silence
BUDGET: Final = 20.0  # seconds after which no further try begins
LONGEST_HINT: Final = 15.0  # a Retry-After beyond this is not believed
TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class _TryAgain(Exception):
    """An answer, or none, after which the same may succeed a little later."""

    def __init__(self, reason: str, hint: float | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


def check(options: NoticeOptions) -> None:
    """Raises UsageError for what is no address to post to; never with the address, which is a secret."""
    parts = urlsplit(options.webhook or "")
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and (local or options.allow_http)):
        raise UsageError(reason="VEHCLASS_WEBHOOK is no https address to post to.")
    if not parts.hostname:
        raise UsageError(reason="VEHCLASS_WEBHOOK names no host.")


def send(notice: Notice, options: NoticeOptions) -> None:
    """Posts a notice, again where that may help; raises NotSent."""
    body = as_json(notice, options)
    with requests.Session() as session:
        tries = Retrying(
            retry=retry_if_exception_type(_TryAgain),
            stop=stop_after_attempt(TRIES) | stop_before_delay(BUDGET),
            wait=_pause,
            reraise=True,
        )
        try:
            tries(_post, session, options.webhook or "", body)
        except _TryAgain as error:
            raise NotSent(way="webhook", reason=str(error)) from None  # the cause would name the address


def as_json(notice: Notice, options: NoticeOptions) -> dict[str, Any]:
    """What is posted: by the format that is set, or that the host's name tells."""
    kind = options.webhook_format
    host = urlsplit(options.webhook or "").hostname or ""
    if kind == "auto" and host.endswith("hooks.slack.com"):
        kind = "slack"
    elif kind == "auto" and host.endswith((".webhook.office.com", ".logic.azure.com", ".api.powerplatform.com")):
        kind = "teams"
    mark = "\N{WHITE HEAVY CHECK MARK}" if notice.good else "\N{CROSS MARK}"
    match kind:
        case "slack":
            return {"text": "\n".join([f"{mark} *{_slack(notice.title)}*", *map(_slack, notice.lines)])}
        case "teams":
            blocks = [{"type": "TextBlock", "text": f"{mark} {notice.title}", "weight": "Bolder", "wrap": True}]
            blocks += [{"type": "TextBlock", "text": line, "wrap": True, "spacing": "None"} for line in notice.lines]
            card = {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": blocks,
            }
            attached = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
            return {"type": "message", "attachments": [attached]}
    return {"good": notice.good, "title": notice.title, "lines": list(notice.lines), **notice.document}


def _slack(text: str) -> str:
    """Text in which Slack sees no markup, as a name may look like some."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _post(session: requests.Session, address: str, body: dict[str, Any]) -> None:
    try:
        # Not followed elsewhere: what the address lets its owner do is meant for one host.
        answer = session.post(address, json=body, timeout=TIMEOUT, allow_redirects=False, stream=True)
    except requests.RequestException as error:
        raise _TryAgain(f"no answer ({type(error).__name__})") from None
    with answer:
        if answer.status_code in TRANSIENT:
            raise _TryAgain(f"the server answers {answer.status_code}", _hint(answer.headers.get("Retry-After")))
        if not 200 <= answer.status_code < 300:
            raise NotSent(way="webhook", reason=f"the server answers {answer.status_code}")


def _hint(value: str | None) -> float | None:
    try:
        return min(LONGEST_HINT, max(0.0, float(value))) if value else None
    except ValueError:  # a date, which nobody here needs
        return None


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    hint = getattr(error, "hint", None)
    return hint if hint is not None else random.uniform(0, min(8.0, 0.5 * 2 ** (state.attempt_number - 1)))
