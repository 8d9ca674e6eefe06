"""How the memory of a run grows with how many photos it takes: `python -m benchmarks.long_night [TIMES]`.

2,048 drawn photos of 1024x768 in a folder, and the same under 25 names each. Each figure is the peak of resident memory
(RSS) of a whole command: MobileNetV3Small, f32, all probabilities into SQLite. Smallest and largest of some runs are printed, and
how much more the median of the many is than that of the few.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.__main__ import SETS, ours, prepare
from benchmarks.machine import describe

NAMES = 25  # of each photo


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    counts = [SETS[0].many, SETS[0].many * NAMES]
    with tempfile.TemporaryDirectory() as name:
        bench = prepare(Path(name), SETS[0], "mobilenet_v3_small")
        peaks = [sorted(bench.once(ours("f32"), count, watched=True).rss_mb for _ in range(times)) for count in counts]
    print(f"Measured on {describe()}.\n")
    print("| photos | peak memory, MB |\n| ---: | ---: |")
    for count, found in zip(counts, peaks, strict=True):
        print(f"| {count:,} | {found[0]:,.0f} to {found[-1]:,.0f} |")
    few, many = map(statistics.median, peaks)
    print(f"\n{many / few - 1:.1%} more.")


if __name__ == "__main__":
    main()
