"""Runs `vehclass classify-batch` as a process of its own, and says how that ended."""

import json
import subprocess
import sys
import tempfile
import threading
from typing import Any, Final

from vehclass.schedule.night import Ended, Job

STOP_SECONDS: Final = 25.0  # what a run is given to end after it was asked to, which takes it 20 at most
LOOK_SECONDS: Final = 0.5


def run_child(job: Job, stop: threading.Event, more: tuple[str, ...] = ()) -> Ended:
    """Runs a job's words, and `more`, until that ends; asks it to when `stop` is set.

    What it says on standard error goes where the scheduler's own lines go.
    """
    words = [sys.executable, "-P", "-m", "vehclass", "classify-batch", *job.words, *more, "--json"]
    with tempfile.TemporaryFile() as out:
        # In a session of its own, so that Ctrl-C in a terminal asks it once, and not twice, to stop.
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True)
        try:
            _wait(process, stop)
        except BaseException:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        return Ended(process.returncode, _document(out.read()))


def _wait(process: "subprocess.Popen[bytes]", stop: threading.Event) -> None:
    while process.poll() is None:
        if stop.wait(LOOK_SECONDS):
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return


def _document(printed: bytes) -> dict[str, Any]:
    """The JSON that was printed; nothing where it is none, as after a crash."""
    try:
        found = json.loads(printed)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
