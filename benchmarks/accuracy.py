"""How good training gets on real photos: `python -m benchmarks.accuracy SET DATA [words for vehclass train]`.

SET is fashion-mnist (its own test split), vtype6, makemodel27 (a fifth held out before training sees anything) or
drawn (three tasks at once against each alone). DATA is the folder that has these sets. Prints a row for
docs/performance.md: accuracy on the held-out photos with its interval, calibration, coverage and precision of what
is not sent to review, the share of photos of another kind that is, and the seconds that training took.
"""

import argparse
import csv
import gzip
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe

VEHCLASS = [sys.executable, "-m", "vehclass"]
ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 5  # every so-many-th photo of a label
MOST_STRANGE = 200


def idx(file: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header)


def unpack_fashion(data: Path, out: Path) -> tuple[Path, Path]:
    """The IDX files as PNGs in a folder per label: those to train on, and the published test split."""
    from PIL import Image

    for name, part in (("train", "train"), ("t10k", "held-out")):
        images = idx(data / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = idx(data / f"{name}-labels-idx1-ubyte.gz", 8)
        for label in range(10):
            (out / part / f"{label}").mkdir(parents=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(out / part / f"{label}" / f"{number:05}.png", compress_level=1)
    return out / "train", out / "held-out"


def hold_out(data: Path, out: Path, seed: int) -> tuple[Path, Path]:
    """A folder per label, shared between what is trained on and what is kept aside."""
    shuffle = random.Random(seed)
    for label in sorted(folder for folder in data.iterdir() if folder.is_dir()):
        files = sorted(file for file in label.iterdir() if file.is_file())
        shuffle.shuffle(files)
        for number, file in enumerate(files):
            place = out / ("held-out" if number % HELD_OUT == 0 else "train") / label.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place / file.name)
    return out / "train", out / "held-out"


def run(*words: str | Path) -> dict[str, Any]:
    done = subprocess.run([*VEHCLASS, *map(str, words), "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def strange_photos(data: Path, besides: str, out: Path) -> dict[str, Path]:
    """Folders with photos of another kind than the set's own."""
    shuffle = random.Random(1)
    kinds = {"road scenes": data / "photos" / "pixabay-cc0", "sports cars": data / "photos" / "sportscars-cc"}
    if besides != "fashion-mnist":
        unpack_fashion(data / "fashion-mnist", out / "fashion")
        kinds["clothing"] = out / "fashion" / "held-out"
    if besides != "vtype6":
        kinds["roadside vehicles"] = data / "vtype6"
    if besides != "makemodel27":
        kinds["front crops"] = data / "makemodel27"
    places = {}
    for kind, folder in kinds.items():
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        places[kind] = out / kind
        places[kind].mkdir(parents=True)
        for number, file in enumerate(shuffle.sample(files, min(MOST_STRANGE, len(files)))):
            shutil.copy(file, places[kind] / f"{number}{file.suffix}")
    return places


def measure(name: str, data: Path, words: list[str], work: Path, seed: int) -> None:
    train, held_out = (
        unpack_fashion(data / name, work / "set")
        if name == "fashion-mnist"
        else hold_out(data / name, work / "set", seed)
    )
    began = time.monotonic()
    facts = run("train", train, "--out", work / "model", *words)
    seconds = time.monotonic() - began
    seen = run("evaluate", work / "model", held_out)["tasks"]["label"]
    strange = {}
    for kind, folder in strange_photos(data, name, work / "strange").items():
        done = run("classify-batch", "-c", folder, "-m", work / "model", "--store", f"sqlite:///{work}/strange.db")
        strange[kind] = done["needs_review"] / max(1, done["classified"])
    low, high = seen["intervals"]["accuracy"]
    print(
        f"\n{describe()}\n{name} {' '.join(words)}: {facts['data']['photos']} photos, {seconds:.0f} s, best epoch {facts['best_epoch']} of {len(facts['history'])}"
    )
    print("| set | held-out photos | accuracy | 95 % | ECE | not to review | right among those | seconds |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    print(
        f"| {name} | {seen['support']:,} | {seen['accuracy']:.1%} | {low:.1%}-{high:.1%} | {seen['ece']:.3f} | "
        f"{seen['coverage']:.1%} | {seen['precision_when_sure']:.1%} | {seconds:.0f} |"
    )
    print(
        "to review: "
        + ", ".join(f"{share:.0%} of {kind}" for kind, share in {**strange, **facts["novelty"]["examples"]}.items())
    )


def measure_drawn(words: list[str], work: Path) -> None:
    """Three tasks at once, with a third of the labels missing, against a model for each alone."""
    subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/draw_samples.py",
            work / "set",
            "--count",
            "2000",
            "--seed",
            "77",
            "--size",
            "320x240",
        ],
        check=True,
    )
    with (work / "set" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chance, tasks = random.Random(5), ("view", "condition", "body")
    for number, row in enumerate(rows):
        row["split"] = "test" if number % 5 == 0 else "val" if number % 5 == 1 else "train"
        if row["split"] == "train":
            row |= {task: "" for task in tasks if chance.random() < 1 / 3}
    scores = {}
    for chosen in (tasks, *((task,) for task in tasks)):
        manifest = work / "set" / f"{'-'.join(chosen)}.csv"
        with manifest.open("w", newline="") as file:
            table = csv.DictWriter(file, ("path", "split", *chosen), extrasaction="ignore")
            table.writeheader()
            table.writerows(row for row in rows if any(row[task] for task in chosen))
        facts = run("train", manifest, "--out", work / "-".join(chosen), *words)
        scores[chosen] = {task: facts["metrics"][task]["accuracy"] for task in chosen}
    print(f"\n{describe()}\n| task | all three at once | alone |\n| --- | ---: | ---: |")
    for task in tasks:
        print(f"| {task} | {scores[tasks][task]:.1%} | {scores[(task,)][task]:.1%} |")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("set", choices=("fashion-mnist", "vtype6", "makemodel27", "drawn"))
    asked.add_argument("data", type=Path)
    asked.add_argument("--hold-out-seed", type=int, default=0)
    asked.add_argument("--keep", type=Path, help="a folder for the model, to start another training from")
    options, words = asked.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.set == "drawn":
            measure_drawn(words, Path(folder))
        else:
            measure(options.set, options.data.resolve(), words, Path(folder), options.hold_out_seed)
            if options.keep:
                shutil.copytree(Path(folder) / "model", options.keep)


if __name__ == "__main__":
    main()
