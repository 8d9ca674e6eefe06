"""Says on which machine something was measured."""

import os
import platform
import sqlite3
from importlib.metadata import distributions, version
from pathlib import Path


def describe() -> str:
    """Processor, cores, memory and the versions that matter, in one line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ("openvino", "pillow", "numpy", "tensorflow", "keras", "ray")
    packages = ", ".join(f"{name} {version(name)}" for name in names if any(distributions(name=name)))
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {packages}"
    )
