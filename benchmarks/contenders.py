"""What a user would pick instead, one contender a process: `python -m benchmarks.contenders NAME PHOTOS MODEL STORE COUNT [PRECISION]`.

Each classifies the first COUNT photos of a folder by MODEL's Keras network and writes all probabilities to a SQLite
file, as its documentation suggests doing it. `decode` and `forward` are the floor: our own decoding alone and our own
forward pass alone, on all cores, nothing else; `turns` is one after the other on every core. Each prints a line of JSON
at its end.
"""

import itertools
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32
ROUNDS = 12  # batches that each core gets at least, as many as any other: with few, some stand idle in the last
CREATE = "CREATE TABLE result (name TEXT, label INTEGER, probability REAL, PRIMARY KEY (name, label)) WITHOUT ROWID"


def files_of(photos: Path, count: int) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))[:count]


def model_of(folder: Path) -> Any:
    import keras

    return keras.saving.load_model(folder / "model.keras", compile=False)


def side_of(folder: Path) -> int:
    return int(json.loads((folder / "model.json").read_text())["input_size"][0])


def shares(logits: Any) -> Any:
    """Softmax over the labels; the last column of our networks is no label."""
    scaled = np.asarray(logits)[:, :-1]
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def save(store: sqlite3.Connection, names: Iterable[str], rows: Any) -> None:
    store.executemany(
        "INSERT INTO result VALUES (?, ?, ?)",
        [(name, label, float(share)) for name, row in zip(names, rows, strict=True) for label, share in enumerate(row)],
    )


def naive(photos: Path, folder: Path, store: sqlite3.Connection, count: int) -> None:
    """The loop that everybody writes first: open, resize, `predict` of 32, a commit an image."""
    from PIL import Image

    model, side = model_of(folder), side_of(folder)
    files = files_of(photos, count)
    for at in range(0, len(files), BATCH):
        some = files[at : at + BATCH]
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((side, side))) for file in some])
        for file, row in zip(some, shares(model.predict(pixels, verbose=0)), strict=True):
            save(store, [file.name], [row])
            store.commit()


def keras_dataset(photos: Path, folder: Path, store: sqlite3.Connection, count: int) -> None:
    """`image_dataset_from_directory`, one `predict` of all, and one insert of everything at the end."""
    import keras

    chosen = Path(store.execute("PRAGMA database_list").fetchone()[2]).parent / "chosen"
    chosen.mkdir()
    for file in files_of(photos, count):
        (chosen / file.name).symlink_to(file)
    model, side = model_of(folder), side_of(folder)
    images = keras.utils.image_dataset_from_directory(
        chosen, labels=None, image_size=(side, side), batch_size=BATCH, shuffle=False, verbose=False
    )
    import tensorflow

    as_bytes = images.map(lambda batch: tensorflow.cast(batch, "uint8")).prefetch(2)
    save(store, [Path(path).name for path in images.file_paths], shares(model.predict(as_bytes, verbose=0)))
    store.commit()


def ray_data(photos: Path, folder: Path, store: sqlite3.Connection, count: int) -> None:
    """Ray Data: `read_images`, then `map_batches` with the network in an actor."""
    import ray

    side = side_of(folder)

    class Predictor:
        def __init__(self) -> None:
            self.model = model_of(folder)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"path": batch["path"], "row": shares(self.model.predict_on_batch(batch["image"]))}

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    images = ray.data.read_images(
        [str(file) for file in files_of(photos, count)], size=(side, side), mode="RGB", include_paths=True
    )
    answers = images.map_batches(Predictor, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=1))
    for batch in answers.iter_batches(batch_size=256):
        save(store, [Path(path).name for path in batch["path"]], batch["row"])
        store.commit()


def on_all_cores(items: Sequence[Any], work: Callable[[Any], None]) -> tuple[float, float]:
    """Seconds that `work` takes on all items with one thread a core, and seconds of CPU."""
    turns = iter(items)
    lock = threading.Lock()

    def lane() -> None:
        while True:
            with lock:
                item = next(turns, None)
            if item is None:
                return
            work(item)

    threads = [threading.Thread(target=lane) for _ in range(os.cpu_count() or 1)]
    began, cpu_began = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, time.process_time() - cpu_began


def decode(photos: Path, folder: Path, count: int) -> tuple[float, float, int]:
    """Our decoding of bytes in memory, nothing else."""
    from vehclass.imaging import decode as ours

    size = (side_of(folder),) * 2
    data = [file.read_bytes() for file in files_of(photos, count)]
    on_all_cores(data[:BATCH], lambda one: ours(one, size) and None)
    return *on_all_cores(data, lambda one: ours(one, size) and None), len(data)


def forward(folder: Path, count: int, precision: str) -> tuple[float, float, int]:
    """Our forward pass over batches in memory, nothing else."""
    runtime, cores = runtime_of(folder, precision), os.cpu_count() or 1
    side = side_of(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (runtime.batch_size, side, side, 3), np.uint8)
    batches = [pixels] * (cores * max(ROUNDS, count // runtime.batch_size // cores))
    runtime.logits(pixels)
    on_all_cores(batches[: 2 * cores], lambda one: runtime.logits(one) is None)
    return *on_all_cores(batches, lambda one: runtime.logits(one) is None), len(batches) * runtime.batch_size


def turns(photos: Path, folder: Path, count: int, precision: str) -> tuple[float, float, int]:
    """A batch in memory decoded and then computed, by turns on every core, nothing else: no reading, no saving."""
    from vehclass.imaging import decode as ours

    runtime, size = runtime_of(folder, precision), (side_of(folder),) * 2
    data = [file.read_bytes() for file in files_of(photos, count)]
    cores = os.cpu_count() or 1
    rounds = max(ROUNDS, len(data) // runtime.batch_size // cores)
    some = itertools.cycle(data)
    batches = [list(itertools.islice(some, runtime.batch_size)) for _ in range(cores * rounds)]

    def turn(batch: list[bytes]) -> None:
        runtime.logits(np.stack([ours(one, size)[0] for one in batch]))

    turn(batches[0])
    on_all_cores(batches[:cores], turn)
    return *on_all_cores(batches, turn), len(batches) * runtime.batch_size


def runtime_of(folder: Path, precision: str) -> Any:
    """Our runtime on the CPU, for as many threads as there are cores."""
    from vehclass.model.folder import open_model
    from vehclass.model.runtime import CPU_BATCH, OpenVinoRuntime

    return OpenVinoRuntime(open_model(folder), CPU_BATCH, os.cpu_count() or 1, precision)


PEERS: dict[str, Callable[[Path, Path, sqlite3.Connection, int], None]] = {
    "naive": naive,
    "keras_dataset": keras_dataset,
    "ray_data": ray_data,
}


def main() -> None:
    name, photos, folder, place, count = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5]
    if name in PEERS:
        store = sqlite3.connect(place)
        store.execute("PRAGMA journal_mode = WAL")
        store.execute(CREATE)
        PEERS[name](photos, folder, store, int(count))
        found = store.execute("SELECT count(DISTINCT name) FROM result").fetchone()[0]
        print(json.dumps({"classified": found}))
        return
    if name == "decode":
        took = decode(photos, folder, int(count))
    elif name == "forward":
        took = forward(folder, int(count), sys.argv[6])
    else:
        took = turns(photos, folder, int(count), sys.argv[6])
    print(json.dumps(dict(zip(("seconds", "cpu_seconds", "classified"), took, strict=True))))


if __name__ == "__main__":
    main()
