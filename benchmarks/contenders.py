"""What a user would pick instead, one contender a process: `python -m benchmarks.contenders NAME PHOTOS MODEL STORE COUNT [PRECISION]`.

Each classifies the first COUNT photos of a folder by MODEL's Keras network and writes all probabilities to a SQLite
file, as its documentation suggests doing it, and prints a line of JSON at its end. `parts` is what ours is measured by: for
each line of its input it spends a moment on each of our own decoding alone, our own forward pass alone, and one after the
other, on all cores, with nothing to read or to save, and prints a line of JSON about them.
"""

import itertools
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32
CORES = os.cpu_count() or 1
PART_SECONDS = 0.3  # of each part, for each question; what is begun is brought to its end
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


def on_all_cores(work: Callable[[], int]) -> dict[str, float]:
    """What one thread a core gets done by `work`, which says how many images that was, again and again for a moment.

    Gives images, and the seconds and the CPU seconds of all threads together: each counts for as long as it has worked, so
    that none is charged for another that ends later, and works on uncounted until all have, so that none has the machine
    for itself.
    """
    done: list[tuple[int, float, float]] = []
    start = threading.Barrier(CORES)
    failed = threading.Event()

    def lane() -> None:
        start.wait()
        images, began, cpu_began = 0, time.perf_counter(), time.thread_time()
        try:
            while time.perf_counter() - began < PART_SECONDS:
                images += work()
            done.append((images, time.perf_counter() - began, time.thread_time() - cpu_began))
            while len(done) < CORES and not failed.is_set():
                work()
        except BaseException:
            failed.set()
            raise

    threads = [threading.Thread(target=lane) for _ in range(CORES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed.is_set():
        raise SystemExit("A part of the work failed.")
    return dict(zip(("images", "seconds", "cpu_seconds"), map(sum, zip(*done, strict=True)), strict=True))


def parts(photos: Path, folder: Path, count: int, precision: str) -> None:
    """Answers each line of the input with what each part of our work took for a moment."""
    from vehclass.imaging import decode

    runtime, side = runtime_of(folder, precision), side_of(folder)
    photos_read = [file.read_bytes() for file in files_of(photos, count)]
    to_decode, to_do = itertools.cycle(photos_read), itertools.cycle(photos_read)
    lock = threading.Lock()
    batch = np.random.default_rng(0).integers(0, 256, (runtime.batch_size, side, side, 3), np.uint8)
    rooms = threading.local()

    def decoded() -> int:
        with lock:
            data = next(to_decode)
        decode(data, (side, side))
        return 1

    def computed() -> int:
        runtime.logits(batch)
        return len(batch)

    def by_turns() -> int:
        with lock:
            data = list(itertools.islice(to_do, len(batch)))
        room = rooms.__dict__.setdefault("pixels", np.empty_like(batch))
        for number, one in enumerate(data):
            room[number] = decode(one, (side, side))[0]
        runtime.logits(room)
        return len(batch)

    on_all_cores(by_turns)
    on_all_cores(computed)  # until each thread has a network of its own
    if len(runtime._compiled) < CORES:
        raise SystemExit(
            "OpenVINO computes in threads of its own here, so that nobody can tell what a part takes of the cores."
        )
    print("ready", flush=True)
    for _ in sys.stdin:
        said = {"decode": on_all_cores(decoded), "forward": on_all_cores(computed), "turns": on_all_cores(by_turns)}
        print(json.dumps(said), flush=True)


def runtime_of(folder: Path, precision: str) -> Any:
    """Our runtime on the CPU, for as many threads as there are cores."""
    from vehclass.model.folder import open_model
    from vehclass.model.runtime import CPU_BATCH, OpenVinoRuntime

    return OpenVinoRuntime(open_model(folder), CPU_BATCH, CORES, precision)


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
    parts(photos, folder, int(count), sys.argv[6])


if __name__ == "__main__":
    main()
