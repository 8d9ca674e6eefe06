"""What a second model costs in one pass: `python -m benchmarks.several_models [TIMES]`.

Two small networks look at the same drawn photos, each in a run of its own and both in one (`--model A --model B`), in
turns; beside them what decoding alone takes. Each figure is a median of the difference between a short run and a long
one. One pass reads and decodes each photo once, so it should save one decoding and one reading.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.__main__ import Bench, Photos, Speed, median, ours, prepare
from benchmarks.machine import describe
from benchmarks.networks import make_model

OF = Photos("1024x768", ("1024x768",), 82, 128, 1024)


def both(second: Path) -> list[str]:
    """The command with two models; it prints a document for each."""
    words = ours("f32")
    at = words.index("MODEL") + 1
    return [*words[:at], "-m", str(second), *words[at:]]


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name:
        bench = prepare(Path(name), OF, "mobilenet_v3_small")
        second = make_model("mobilenet_v3_small", 224, Path(name) / "second", seed=1)
        ways = {
            "the first alone": (bench, ours("f32")),
            "the second alone": (Bench(bench.photos, second, OF), ours("f32")),
        }
        ways["both in one pass"] = (bench, both(second))
        found: dict[str, list[Speed]] = {name: [] for name in (*ways, "decoding alone")}
        for _ in range(times):
            for name, (with_models, words) in ways.items():
                found[name].append(with_models.speed(words))
            found["decoding alone"].append(bench.alone("decode"))
    print(f"Measured on {describe()}.\n")
    print("| | photos/s | CPU, ms a photo |\n| --- | ---: | ---: |")
    speeds = {name: median(each) for name, each in found.items()}
    for name, one in speeds.items():
        print(f"| {name} | {one.rate:,.0f} | {one.cpu_ms:.2f} |")
    apart = speeds["the first alone"].cpu_ms + speeds["the second alone"].cpu_ms
    saved = apart - speeds["both in one pass"].cpu_ms
    print(
        f"\nOne pass saves {saved:.2f} ms of CPU a photo: {saved / speeds['decoding alone'].cpu_ms:.2f} of a decoding."
    )


if __name__ == "__main__":
    main()
