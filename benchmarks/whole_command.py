"""The commands as a user waits for them: `python -m benchmarks.whole_command [PHOTOS]`.

Medians of seven runs, each a process of its own, after one that warms the file cache. PHOTOS is a folder for
the last rows; drawn photos serve without it.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = str(ROOT / "models/sample")
VEHCLASS = [sys.executable, "-m", "vehclass"]
TIMES = 7


def seconds(words: list[str], folder: Path, *, fresh: bool, times: int = TIMES) -> float:
    """The median time of a command; `fresh` takes the store away before each run."""
    spent = []
    for _ in range(times + 1):
        if fresh:
            for file in folder.glob("vehclass.db*"):
                file.unlink()
        began = time.perf_counter()
        done = subprocess.run(
            [*VEHCLASS, *words],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=False,
        )
        spent.append(time.perf_counter() - began)
        assert done.returncode in (0, 3), done.stderr.decode()
    return statistics.median(spent[1:])


def main() -> None:
    """Measures and prints the table."""
    print(f"Measured on {describe()}.\n")
    print("| what | seconds | images/s |\n| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw = [
            sys.executable,
            str(ROOT / "scripts/draw_samples.py"),
            str(folder / "uploads"),
            "--count",
            "512",
            "--seed",
            "77",
        ]
        subprocess.run(draw, check=True, stdout=subprocess.DEVNULL)
        batch = ["classify-batch", "-m", SAMPLE, "--include", "*.jpg", "-c"]
        print(f"| `vehclass --help` | {seconds(['--help'], folder, fresh=False):.2f} | |", flush=True)
        one = seconds([*batch, "uploads", "--limit", "1"], folder, fresh=True)
        print(f"| start to the first result, saved, and the summary (`--limit 1`) | {one:.2f} | |", flush=True)
        slow = seconds([*batch, "uploads", "--limit", "1", "--runtime", "keras"], folder, fresh=True, times=3)
        print(f"| the same with `--runtime keras` (TensorFlow on the CPU) | {slow:.2f} | |", flush=True)
        whole = seconds([*batch, "uploads"], folder, fresh=True)
        print(f"| 512 drawn photos of 1024x768, start to end | {whole:.2f} | {512 / whole:,.0f} |", flush=True)
        again = seconds([*batch, "uploads"], folder, fresh=False)
        print(f"| the same again: nothing new | {again:.2f} | |", flush=True)
        if len(sys.argv) > 1:
            photos = Path(sys.argv[1]).resolve()
            count = sum(1 for file in photos.rglob("*.jpg"))
            real = seconds([*batch, str(photos)], folder, fresh=True, times=5)
            print(f"| {count:,} photos of {photos.name} | {real:.2f} | {count / real:,.0f} |", flush=True)
            shutil.rmtree(folder / "uploads")


if __name__ == "__main__":
    main()
