"""Runs a command and says what it took: seconds, CPU of all its processes, the most memory that they held at once."""

import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals

COUNT_SECONDS = 1.0  # how often the CPU of all processes is looked at
WATCH_SECONDS = 0.1  # how often their memory is, where it is asked for
SLICE_SECONDS = 1.0  # how long a command runs before it stands still for something else, where it does
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Took:
    """What a command took: wall seconds, CPU seconds, memory in MB, what it printed.

    Where it was watched `peak_mb` is the most that all its processes held at once, `rss_mb` the most of its largest one.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    rss_mb: float
    out: str


def run(
    words: Sequence[str | Path],
    folder: Path,
    environment: Mapping[str, str],
    *,
    watched: bool = False,
    between: Callable[[], None] | None = None,
) -> Took:
    """Runs a command in a folder to its end; exits with its message when it fails.

    Each second it stands still while `between` has the machine, where that is given; its seconds leave that out. What it was
    at in that moment takes it for a long wait, such as a turn of several batches, which is computed early; that is below 1 %.
    CPU is that of every process that was seen. A run whose memory is `watched` is slower by it, by a tenth where pages
    come and go, so times come from other runs. The memory of all is the sum over its processes of what each holds of its own
    and its part of what it shares (PSS, see proc_pid_smaps(5)).
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(list(map(str, words)), cwd=folder, env=dict(environment), stdout=out, stderr=err)
        peaks, largest, spent, ended = [0.0], [0.0], dict[int, float](), threading.Event()

        def look() -> None:
            while not ended.wait(WATCH_SECONDS if watched else COUNT_SECONDS):
                family = _family(process.pid)
                spent.update({pid: _cpu(pid) for pid in family})
                if watched:
                    peaks.append(sum(map(_held, family)))
                    largest.extend(map(_high_water, family))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            stood = _in_slices(process.pid, between) if between is not None else 0.0
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began - stood
        except BaseException:
            process.kill()
            raise
        finally:
            ended.set()
            watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode not in (0, 3):
            raise SystemExit(f"{words} failed with {process.returncode}: {err.read()[-2000:]}")
        # The system counts a child with its parent only if the parent waited for it, which Ray's does not.
        cpu = max(usage.ru_utime + usage.ru_stime, sum(spent.values()))
        return Took(seconds, cpu, max(peaks), max(largest), out.read())


def _in_slices(pid: int, between: Callable[[], None]) -> float:
    """Stops a process again and again for something else, until it ends; returns for how long it stood still."""
    stood, end = 0.0, os.pidfd_open(pid)
    try:
        watch = select.poll()
        watch.register(end, select.POLLIN)
        while not watch.poll(1000 * SLICE_SECONDS):
            began = time.perf_counter()
            os.kill(pid, SIGSTOP)
            family = _family(pid)  # with helpers, which would go on with what they were asked
            for member in family:
                _tell(member, SIGSTOP)
            try:
                between()
            finally:
                for member in reversed(family):
                    _tell(member, SIGCONT)
            stood += time.perf_counter() - began
    finally:
        os.close(end)
    return stood


def _tell(pid: int, signal: Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal)


def _family(pid: int) -> list[int]:
    """A process and all that come from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, at = [pid], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found


def _held(pid: int) -> float:
    """MB, with its part of what it shares."""
    return _kib(pid, "smaps_rollup", "Pss:") / 1024


def _high_water(pid: int) -> float:
    """The most resident memory that it had, MB. The figure of wait4(2) would begin with that of the process that started it."""
    return _kib(pid, "status", "VmHWM:") / 1024


def _kib(pid: int, file: str, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(field))


def _cpu(pid: int) -> float:
    """Seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except (OSError, IndexError):
        return 0.0
