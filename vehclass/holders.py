"""Who holds a lease and on what: whether that process is still there (host, process, boot), and which store it is."""

import os
import socket
from pathlib import Path


def identity() -> str:
    """Who holds a lease: host, process id, when it started, and which boot and process space it is of."""
    return f"{socket.gethostname()} {os.getpid()} {start_ticks(os.getpid())} {_world()}"


def is_gone(holder: str) -> bool:
    """Whether a holder was a process of this very machine and has ended; a holder elsewhere may be alive."""
    host, pid, started, world = [*holder.split(" "), "", "", ""][:4]
    if host != socket.gethostname() or world != _world() or world == "unknown":
        return False
    return start_ticks(int(pid)) != started


def place_of(store: str) -> str:
    """A store's URL as it is the same for all who mean that store, and another's for those who do not: a file is one of this machine."""
    if not store.startswith("sqlite:///"):
        return store
    return f"{socket.gethostname()} {Path(store.removeprefix('sqlite:///')).resolve()}"


def start_ticks(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), field 22); '' when there is none that runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except (OSError, IndexError, ValueError):
        return ""


def _world() -> str:
    """This boot of this machine and this container's process numbers; 'unknown' where the system tells neither."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return "unknown"
