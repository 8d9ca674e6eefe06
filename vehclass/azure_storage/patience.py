"""Repeats a request to Azure where that may help: how often, how long, and how soon to give up.

The SDK's own retries are off: with its defaults a dead server is noticed after 82 s. These give up on a
server that does not answer within 15 s, wait as long as a busy one asks for, or for one that answers others
meanwhile, and never repeat what cannot succeed.
"""

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, IncompleteReadError
from tenacity import RetryCallState, Retrying, retry_if_exception

from vehclass.azure_storage.wire import Overtaken

T = TypeVar("T")

SILENCE_BUDGET: Final = 5.0  # after so long without any answer, no further try begins
BUSY_BUDGET: Final = 60.0  # for a server that answers, but asks to come back later, or answers others
LEAST_OF_BODIES: Final = 2  # tries of an answer that began to arrive, or that others overtook
LONGEST_HINT: Final = 30.0  # a Retry-After beyond this is not believed
TRANSIENT_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})


def patiently(request: Callable[[], T]) -> T:
    """Runs a request, again where that may help."""
    return _again(request)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status of an error; None when there was no answer, or none to its end."""
    return error.status_code if isinstance(error, HttpResponseError) else None


def code_of(error: AzureError) -> str:
    """The service's own word for an error, such as BlobArchived."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or status_of(error))


def _may_help(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientAuthenticationError) or not isinstance(error, AzureError):
        return False
    status = status_of(error)
    return status is None or status in TRANSIENT_STATUS


def _enough(state: RetryCallState) -> bool:
    """When to give up: soon on silence, later on a server that answers."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, IncompleteReadError | Overtaken) and state.attempt_number < LEAST_OF_BODIES:
        return False  # a large one may take longer than the budget before its line breaks
    silent = status_of(error) is None and not isinstance(error, Overtaken)
    budget = SILENCE_BUDGET if silent else BUSY_BUDGET
    elapsed = time.monotonic() - state.start_time
    return elapsed + (_hint(error) or 0.0) > budget or state.attempt_number >= 8


def _pause(state: RetryCallState) -> float:
    """The server's own hint, or full jitter under a doubling ceiling, which is lower for a silent server."""
    error = state.outcome.exception() if state.outcome else None
    highest = 2.0 if status_of(error) is None else 8.0
    return _hint(error) or random.uniform(0, min(highest, 0.5 * 2 ** (state.attempt_number - 1)))


def _hint(error: BaseException | None) -> float | None:
    """Seconds from x-ms-retry-after-ms or Retry-After, where the answer has one and it can be believed."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    for name, unit in (("x-ms-retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return min(LONGEST_HINT, max(0.0, float(headers[name]) * unit))
        except (KeyError, ValueError):
            continue
    return None


# One for all requests and threads: what it remembers, it does by thread.
_again: Final = Retrying(retry=retry_if_exception(_may_help), stop=_enough, wait=_pause, reraise=True)
