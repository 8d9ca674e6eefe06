"""The doors on the command line: parse, wire, one call, show. Only here does vehclass print or exit."""

import gc
import json
import logging
import re
import signal
import sys
import traceback
from types import FrameType
from typing import Final

from vehclass.errors import ExitCode, Interrupted, VehclassError

# New objects that make Python look for cycles among them. Its own number, 700 at first, has it look 190 times instead of 34 in a run
# that finds nothing new, and again for every few photos, whose results have no cycles.
GARBAGE_AFTER: Final = 10_000


def main() -> None:
    """The `vehclass` command: the one place where errors become a sentence and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _interrupt)
    sys.unraisablehook = _not_raised
    gc.set_threshold(GARBAGE_AFTER)
    for stream in (sys.stdout, sys.stderr):  # a name may hold what the terminal's encoding cannot show
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # text streams, here
    try:
        from vehclass.cli.app import app

        app()
    except Interrupted as error:
        _report(error, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  (the boundary: nothing may leave it as a traceback)
        # A signal that comes while native code is being loaded leaves it as an ImportError of that code, or as what that leads to.
        _report_error(Interrupted(signal.Signals(_asked[0])) if _asked else error)
    finally:
        # All is said and saved: a signal that comes while Python tidies up must not change the exit code.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        gc.freeze()  # nor does it look for cycles in all that was loaded, a tenth of a second


def _report_error(error: Exception | Interrupted) -> None:
    if isinstance(error, VehclassError | Interrupted):
        _report(error, str(error), error.exit_code)
    elif isinstance(error, MemoryError):
        _report(error, "There is not enough memory. Try a smaller --batch-size.", ExitCode.FAILED)
    else:
        reason = f"Something unforeseen went wrong ({type(error).__name__}: {error})."
        _report(error, f"{reason} Run it again with --verbose to see where.", ExitCode.FAILED)


_asked: list[int] = []  # the signals that came, the first of which counts


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C and SIGTERM outside a run: nothing to save, so leave at once. SIGALRM asks once more."""
    if number != signal.SIGALRM:
        _asked.append(number)
    raise Interrupted(signal.Signals(_asked[0] if _asked else number))


def _not_raised(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised at a few places, as in a callback of its imports: a signal that came there is heard again."""
    if isinstance(unraisable.exc_value, Interrupted):
        signal.setitimer(signal.ITIMER_REAL, 0.001)
    else:
        sys.__unraisablehook__(unraisable)


def _report(error: BaseException, message: str, code: ExitCode) -> None:
    """Says what went wrong, once for people and, with --json, once for machines; then exits."""
    from vehclass.cli import logs
    from vehclass.cli.show import plain

    if "--verbose" in sys.argv or "-v" in sys.argv:
        print(without_secrets("".join(traceback.format_exception(error))), file=sys.stderr)
    notes = [plain(without_secrets(note)) for note in getattr(error, "__notes__", ())]
    if logs.as_json():
        extra = {"error": type(error).__name__, "exit_code": int(code), **({"notes": notes} if notes else {})}
        logging.getLogger("vehclass").error("%s", message, extra=extra)
    else:
        print(f"vehclass: {plain(without_secrets(message))}", file=sys.stderr)
        for note in notes:
            print(f"  {note}", file=sys.stderr)
    if "--json" in sys.argv:
        said = {"error": type(error).__name__, "message": without_secrets(message), "exit_code": int(code)}
        print(json.dumps(said))
    sys.exit(int(code))


def without_secrets(text: str) -> str:
    """Text without what signs a request: the values of a SAS, a key or a password in a URL or a header."""
    text = re.sub(r"(?i)\b(sig|se|sp|skoid|sktid)=[^&\s'\"]+", r"\1=...", text)
    text = re.sub(
        r"(?i)(accountkey|sharedaccesssignature|password|pwd|authorization)(['\"]?\s*[=:]\s*['\"]?)[^;,'\"]+",
        r"\1\2...",
        text,
    )
    return re.sub(r"://[^/\s:@]+:[^/\s@]+@", "://...:...@", text)
