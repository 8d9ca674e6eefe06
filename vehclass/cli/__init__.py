"""The doors on the command line: parse, wire, one call, show. Only here does vehclass print or exit."""

import json
import os
import signal
import sys
import traceback
from types import FrameType

from vehclass.errors import ExitCode, Interrupted, VehclassError


def main() -> None:
    """The `vehclass` command: the one place where errors become a sentence and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    verbose = "--verbose" in sys.argv or "-v" in sys.argv
    try:
        from vehclass.cli.app import app

        app()
    except VehclassError as error:
        _report(error, verbose)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); leave as a program that the pipe stopped.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except MemoryError as error:
        _report(VehclassError(reason="There is not enough memory. Try a smaller --batch-size."), verbose, error)
        sys.exit(ExitCode.FAILED)
    except Exception as error:  # noqa: BLE001  (the boundary: nothing may leave it as a traceback)
        reason = f"Something unforeseen went wrong ({type(error).__name__}: {error}). Run it again with --verbose to see where."
        _report(VehclassError(reason=reason), verbose, error)
        sys.exit(ExitCode.FAILED)
    finally:
        # All is said and saved: a signal that comes while Python tidies up must not change the exit code.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C and SIGTERM outside a run: nothing to save, so leave at once."""
    raise Interrupted(signal=signal.Signals(number).name, exit_code=ExitCode(128 + number))


def _report(error: VehclassError, verbose: bool, cause: Exception | None = None) -> None:
    from vehclass.cli.show import plain

    if verbose:
        traceback.print_exception(cause or error)
    print(f"vehclass: {plain(str(error))}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {plain(note)}", file=sys.stderr)
    if "--json" in sys.argv:
        print(
            json.dumps(
                {"error": type(cause or error).__name__, "message": str(error), "exit_code": int(error.exit_code)}
            )
        )
