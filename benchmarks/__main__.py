"""Speed against what a user would pick instead, side by side in one run: `python -m benchmarks [--quick]`.

Draws photos, makes networks with random weights and 25 labels, and runs each contender in a process of its own,
alternating, each time on a few photos and on many: the difference is the steady state, without the start. Every figure
is a median. The floor is what our own decoding alone and our own forward pass alone take of the cores; the limit is what
that allows on all cores, 1 / (1/D + 1/F). Beside it stands what the two reach by turns on every core, with nothing else to
do. All three are measured within the run that they belong to, which stands still for them each second: a host that gives
more or less from one moment to the next would otherwise be what is measured. Ray Data takes part where it is installed (`pip install "ray[data]"`). Photos are read
once before each run, so that none depends on what the system still has in memory of them.

A table is printed and put into its place in docs/performance.md, with the command and the machine. `--quick` leaves the
others out, writes nothing and compares with benchmarks/figures.json: it fails when the CPU that an image takes, as a
multiple of the floor, has grown by more than 15 %. A whole run writes that file.
"""

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.networks import make_model
from benchmarks.processes import Took, run

ROOT = Path(__file__).resolve().parent.parent
FIGURES = Path(__file__).with_name("figures.json")
PAGE = ROOT / "docs/performance.md"
CORES = os.cpu_count() or 1
NETWORKS = ("mobilenet_v3_small", "efficientnet_v2_b0")
PRECISIONS = ("f32", "bf16", "int8")
PEERS = {
    "naive": "the naive loop",
    "keras_dataset": "`image_dataset_from_directory` + `predict`",
    "ray_data": "Ray Data",
}
MOST_GROWTH = 1.15
AGAIN = 4  # names of each photo that our long run gets, since its start differs by more than what is to be measured


@dataclass(frozen=True)
class Photos:
    """A folder of drawn photos of some sizes in turn, and how many of them the short and the long run take."""

    name: str
    sizes: tuple[str, ...]
    quality: int
    few: int
    many: int


MIX = ("640x480", "1024x768", "1920x1080", "800x600", "4000x3000")
SETS = (
    Photos("1024x768", ("1024x768",), 82, 256, 2048),
    Photos("12 megapixels", ("4000x3000",), 90, 40, 200),
    Photos("a mix", MIX, 85, 100, 600),
)
SMALL = (
    Photos("1024x768", ("1024x768",), 82, 128, 640),
    Photos("12 megapixels", ("4000x3000",), 90, 40, 200),
    Photos("a mix", MIX, 85, 100, 400),
)
QUICK = SMALL[0]


@dataclass(frozen=True)
class Speed:
    """A contender's steady state: images a second, CPU ms an image; the start in seconds, memory in MB."""

    rate: float
    cpu_ms: float
    start: float = 0.0
    peak_mb: float = 0.0

    @property
    def busy(self) -> float:
        """The share of all cores that worked."""
        return self.rate * self.cpu_ms / 1000 / CORES


@dataclass(frozen=True)
class Bench:
    """A network and a set of photos to measure with."""

    photos: Path
    model: Path
    of: Photos

    def speed(self, words: Sequence[str], again: int = 1, between: Callable[[], None] | None = None) -> Speed:
        """One contender: a short run and a long one, of which the difference counts; `between` is called while the long one stands still."""
        few, many = self.of.few, self.of.many * again
        short, long = self.once(words, few), self.once(words, many, between=between)
        more = many - few
        rate = more / (long.seconds - short.seconds)
        cpu_ms = 1000 * (long.cpu_seconds - short.cpu_seconds) / more
        return Speed(rate, cpu_ms, short.seconds - few / rate)

    def peak(self, words: Sequence[str]) -> float:
        """The most memory that a contender holds on many photos, MB; a run of its own, since watching slows it."""
        return self.once(words, self.of.many, watched=True).peak_mb

    def once(
        self, words: Sequence[str], count: int, *, watched: bool = False, between: Callable[[], None] | None = None
    ) -> Took:
        """One contender on so many photos, all of which it has to classify, with a store of its own."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            photos = self._folder(count)
            chosen = {
                "PHOTOS": photos,
                "MODEL": self.model,
                "STORE": folder / "results.db",
                "COUNT": count,
            }
            filled = [str(chosen.get(word, word)) for word in words]
            for file in photos.iterdir():
                file.read_bytes()
            took = run([sys.executable, *filled], folder, _environment(), watched=watched, between=between)
            said = json.loads(took.out if words[1] == "vehclass" else took.out.splitlines()[-1])
            done = min(one["classified"] for one in said.get("runs", [said]))  # a document for each of several models
            if done != count:
                raise SystemExit(f"{' '.join(filled)} classified {done} of {count} photos.")
            return took

    def _folder(self, count: int) -> Path:
        """So many photos, the first by name or all under several names, as links in a folder of their own."""
        if count == self.of.many:
            return self.photos
        some = self.photos.with_name(f"{self.photos.name} {count}")
        if not some.exists():
            some.mkdir()
            files = sorted(self.photos.glob("*.jpg"))
            for number in range(count):
                file = files[number % len(files)]
                (some / f"{number // len(files)}-{file.name}").hardlink_to(file)
        return some

    def beside(self, words: Sequence[str], precision: str) -> "Beside":
        """Ours, and its parts alone in the same seconds, more or less."""
        with self._parts(precision) as (measure, parts):
            ours = self.speed(words, AGAIN, measure)
            return Beside(ours, *(_alone(parts[name]) for name in ("decode", "forward", "turns")))

    def alone(self, part: str, precision: str = "f32", times: int = 5) -> Speed:
        """A part of ours by itself: decode, forward, or turns."""
        with self._parts(precision) as (measure, parts):
            for _ in range(times):
                measure()
            return _alone(parts[part])

    @contextmanager
    def _parts(self, precision: str) -> Iterator[tuple[Callable[[], None], dict[str, Counter[str]]]]:
        """What to call to have each part measured for a moment, and the sums so far."""
        words = ["-m", "benchmarks.contenders", "parts", self.photos, self.model, "-", self.of.many, precision]
        command = [sys.executable, *map(str, words)]
        sums: dict[str, Counter[str]] = {name: Counter() for name in ("decode", "forward", "turns")}
        with subprocess.Popen(
            command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            asked, answers = process.stdin, process.stdout
            if answers.readline() != "ready\n":
                raise SystemExit(f"{' '.join(command)} did not begin.")

            def measure() -> None:
                asked.write("\n")
                asked.flush()
                for name, took in json.loads(answers.readline()).items():
                    sums[name].update(took)

            yield measure, sums
            asked.close()


def _alone(took: Counter[str]) -> Speed:
    """The speed of a part, by what threads took that count together."""
    return Speed(CORES * took["images"] / took["seconds"], 1000 * took["cpu_seconds"] / took["images"])


def _environment() -> dict[str, str]:
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "KERAS_BACKEND", "AZURE_STORAGE_KEY") if name in os.environ
    }
    return (
        kept
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
    )


def ours(precision: str) -> list[str]:
    """The whole command: reading, decoding, the network, all probabilities into SQLite."""
    batch = ["-m", "vehclass", "classify-batch", "-c", "PHOTOS", "-m", "MODEL", "--include", "*.jpg"]
    return [*batch, "--limit", "COUNT", "--store", "sqlite:///results.db", "--precision", precision, "--json"]


@dataclass(frozen=True)
class Beside:
    """One run of ours, and its parts alone beside it."""

    ours: Speed
    decode: Speed
    forward: Speed
    turns: Speed

    @property
    def of_limit(self) -> float:
        """Our images a second, of those that decoding and computing alone would allow."""
        return self.ours.rate * (1 / self.decode.rate + 1 / self.forward.rate)

    @property
    def of_floor(self) -> float:
        """Our CPU an image, as a multiple of what decoding and computing alone take."""
        return self.ours.cpu_ms / (self.decode.cpu_ms + self.forward.cpu_ms)

    @property
    def of_turns(self) -> float:
        """Our images a second, of what decoding and computing by turns reach with nothing to read or to save."""
        return self.ours.rate / self.turns.rate


def measure(
    bench: Bench, contenders: dict[str, list[str]], times: int
) -> tuple[dict[str, Speed], dict[str, list[Beside]]]:
    """Medians of each contender, with the peak of its memory; for each precision of ours every run beside its parts."""
    peaks = {name: bench.peak(words) for name, words in contenders.items()}
    speeds: dict[str, list[Speed]] = {name: [] for name in contenders}
    beside: dict[str, list[Beside]] = {name: [] for name in contenders if name in PRECISIONS}
    for _ in range(times):
        for name, words in contenders.items():
            if name in beside:
                beside[name].append(bench.beside(words, name))
                speeds[name].append(beside[name][-1].ours)
            else:
                speeds[name].append(bench.speed(words))
    return {name: replace(median(each), peak_mb=peaks[name]) for name, each in speeds.items()}, beside


def median(speeds: Sequence[Speed]) -> Speed:
    """Each figure's median."""
    names = ("rate", "cpu_ms", "start", "peak_mb")
    return Speed(*(statistics.median(getattr(one, name) for one in speeds) for name in names))


def over_floor(beside: dict[str, list[Beside]]) -> dict[str, float]:
    """The CPU of ours as multiples of the floor, by precision."""
    return {name: statistics.median(run.of_floor for run in runs) for name, runs in beside.items()}


def table(speeds: dict[str, Speed], beside: dict[str, list[Beside]]) -> list[str]:
    """The lines of a table, and of one of ours alone."""
    best = max((name for name in speeds if name in PRECISIONS), key=lambda name: speeds[name].rate)
    over = over_floor(beside)
    lines = [
        "| | images/s | of the limit | vehclass is faster by | CPU, ms an image | of the floor | cores busy | start, s | peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in speeds.items():
        limit = floor = ratio = ""
        if name in PRECISIONS:
            limit, floor = f" {statistics.median(run.of_limit for run in beside[name]):.2f}", f" {over[name]:.2f}"
        else:
            ratio = f" {speeds[best].rate / one.rate:.1f} ({speeds['f32'].rate / one.rate:.1f} in f32)"
        lines.append(
            f"| {f'vehclass, {name}' if name in PRECISIONS else PEERS[name]} | {one.rate:,.0f} |{limit} |{ratio} | "
            f"{one.cpu_ms:.2f} |{floor} | {one.busy:.0%} | {one.start:.1f} | {one.peak_mb:,.0f} |"
        )
    lines += [
        "",
        "| alone on all cores, images/s (CPU, ms an image) | decode | forward | by turns | vehclass has of that |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in beside.items():
        parts = [median([getattr(run, part) for run in runs]) for part in ("decode", "forward", "turns")]
        cells = " | ".join(f"{one.rate:,.0f} ({one.cpu_ms:.2f})" for one in parts)
        lines.append(f"| {name} | {cells} | {statistics.median(run.of_turns for run in runs):.2f} |")
    return lines


def record(title: str, lines: Sequence[str], page: Path = PAGE) -> None:
    """Puts what was measured into the place that a page has for it."""
    head, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- measured: {title} -->\n")
    _, end, tail = rest.partition("<!-- end -->\n")
    if not end:
        raise SystemExit(f"{page} has no place for {title}.")
    page.write_text("".join([head, begin, *(f"{line}\n" for line in lines), end, tail]), encoding="utf-8")


def prepare(work: Path, of: Photos, backbone: str) -> Bench:
    """Draws the photos and makes the network, where they are not there yet."""
    photos, model = work / of.name, work / backbone
    if not photos.exists():
        photos.mkdir()
        for turn, size in enumerate(of.sizes):
            apart, count = work / f"{of.name} {size}", -(-of.many // len(of.sizes))
            draw = [sys.executable, ROOT / "scripts/draw_samples.py", apart, "--count", str(count), "--size", size]
            subprocess.run([*draw, "--quality", str(of.quality)], check=True, stdout=subprocess.DEVNULL)
            # So named that every contender, who takes the first so many by name, gets the sizes in turn.
            for number, file in enumerate(sorted(apart.rglob("*.jpg"))):
                file.rename(photos / f"{number:05}-{turn}.jpg")
    if not model.exists():
        make_model(backbone, 224, model)
    return Bench(photos, model, of)


def whole(work: Path, times: int, sets: Sequence[Photos], networks: Sequence[str]) -> None:
    """Every contender on every set with every network; what was measured replaces its like on the page and in figures.json."""
    there = [name for name in PEERS if name != "ray_data" or importlib.util.find_spec("ray") is not None]
    contenders = {name: ours(name) for name in PRECISIONS}
    contenders |= {name: ["-m", "benchmarks.contenders", name, "PHOTOS", "MODEL", "STORE", "COUNT"] for name in there}
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    for of in sets:
        for backbone in networks:
            title = f"{backbone}, {of.name}"
            speeds, beside = measure(prepare(work, of, backbone), contenders, times)
            how = f"`{command}`, medians of {times} rounds of {of.few} and {of.many:,} photos, on {describe()}:"
            lines = [how, "", *table(speeds, beside)]
            print(f"\n### {title}", *lines, sep="\n", flush=True)
            record(title, lines)
            figures = {title: {name: round(share, 3) for name, share in over_floor(beside).items()}}
            FIGURES.write_text(json.dumps(json.loads(FIGURES.read_text()) | figures, indent=2) + "\n")


def quick(work: Path) -> int:
    """Ours alone against the committed figures; 1 when an image costs too much more than it did."""
    bench = prepare(work, QUICK, NETWORKS[0])
    title = f"{NETWORKS[0]}, {QUICK.name}"
    speeds, beside = measure(bench, {name: ours(name) for name in PRECISIONS[:2]}, 3)
    print(f"\n### {title}", "", *table(speeds, beside), sep="\n")
    over = over_floor(beside)
    before = json.loads(FIGURES.read_text())[title]
    grown = [name for name, share in over.items() if share > MOST_GROWTH * before[name]]
    for name in grown:
        print(f"An image takes {over[name]:.2f} times the floor in {name}; it was {before[name]:.2f}.", file=sys.stderr)
    return 1 if grown else 0


def main() -> None:
    """Measures and prints the tables."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--quick", action="store_true", help="ours alone, compared with the committed figures")
    asked.add_argument("--small", action="store_true", help="a third of the small photos, for half the time")
    asked.add_argument("--times", type=int, default=5)
    asked.add_argument("--set", choices=[of.name for of in SETS], help="one set of photos instead of all")
    asked.add_argument("--network", choices=NETWORKS, help="one network instead of all")
    options = asked.parse_args()
    print(f"Measured on {describe()}.")
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            sys.exit(quick(Path(folder)))
        sets = SMALL if options.small else SETS
        networks = [options.network] if options.network else NETWORKS
        whole(Path(folder), options.times, [of for of in sets if options.set in (None, of.name)], networks)


if __name__ == "__main__":
    main()
