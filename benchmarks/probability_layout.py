"""Three ways to keep all probabilities in SQLite: `python -m benchmarks.probability_layout [IMAGES]`.

Each takes images with 25 labels, 256 a transaction, with synchronous=FULL, then is asked which images are
label 6 with more than 0.3. 'clustered' is the one that vehclass uses: rows by label, then by image.
"""

import json
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe
from vehclass.stores.sqlite import run_statements

LABELS, BATCH = 25, 256
QUERY = "SELECT count(*) FROM {} WHERE label = 'label 6' AND probability > 0.3"
INSERT = (
    "INSERT INTO probability (label_seq, image_seq, probability) VALUES :rows"
    " ON CONFLICT DO UPDATE SET probability = excluded.probability"
)
NAMES = "CREATE TABLE label (label_seq INTEGER PRIMARY KEY, label TEXT); CREATE VIEW found AS SELECT * FROM label JOIN probability USING (label_seq);"
LAYOUTS = {
    "clustered by label, then image": (
        "CREATE TABLE probability (label_seq INT, image_seq INT, probability REAL, PRIMARY KEY (label_seq, image_seq))"
        f" WITHOUT ROWID; {NAMES}",
        INSERT,
        QUERY.format("found"),
    ),
    "by image, with an index on label and probability": (
        "CREATE TABLE probability (label_seq INT, image_seq INT, probability REAL, PRIMARY KEY (image_seq, label_seq))"
        f" WITHOUT ROWID; CREATE INDEX by_label ON probability (label_seq, probability); {NAMES}",
        INSERT,
        QUERY.format("found"),
    ),
    "one JSON object an image, and a view": (
        "CREATE TABLE prediction (image_seq INTEGER PRIMARY KEY, probabilities TEXT);"
        " CREATE VIEW found AS SELECT image_seq, e.key AS label, e.value AS probability FROM prediction, json_each(probabilities) AS e;",
        "INSERT INTO prediction VALUES :rows",
        QUERY.format("found"),
    ),
}


def measure(layout: str, images: int, path: Path) -> str:
    """A row of the table."""
    schema, insert, query = LAYOUTS[layout]
    rng = random.Random(1)
    store = sqlite3.connect(path, isolation_level=None)
    store.execute("PRAGMA journal_mode = TRUNCATE").fetchone()
    store.execute("PRAGMA synchronous = FULL")
    store.executescript(schema)
    if "JSON" not in layout:
        store.executemany("INSERT INTO label VALUES (?, ?)", [(n, f"label {n}") for n in range(LABELS)])
    spent = 0.0
    for start in range(0, images, BATCH):
        rows: list[tuple[object, ...]] = []
        for image in range(start, min(images, start + BATCH)):
            weights = [rng.random() ** 12 for _ in range(LABELS)]
            total = sum(weights)
            shares = [weight / total for weight in weights]
            if "JSON" in layout:
                rows.append((image, json.dumps({f"label {n}": share for n, share in enumerate(shares)})))
            else:
                rows += [(n, image, share) for n, share in enumerate(shares)]
        if "clustered" in layout:
            rows.sort()  # each is written beside the last
        began = time.perf_counter()
        store.execute("BEGIN IMMEDIATE")
        run_statements(store.cursor(), [insert], {"rows": rows})
        store.execute("COMMIT")
        spent += time.perf_counter() - began
    began = time.perf_counter()
    store.execute(query).fetchone()
    asked = time.perf_counter() - began
    store.close()
    return f"| {layout} | {images / spent:,.0f} | {path.stat().st_size / images:,.0f} | {asked * 1000:,.0f} ms |"


def main() -> None:
    """Measures each layout once and prints the table."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    print(f"{images:,} images; measured on {describe()}.\n")
    print("| layout | images/s | bytes an image | the query |\n| --- | ---: | ---: | ---: |")
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(layout, images, Path(folder) / "r.db"), flush=True)


if __name__ == "__main__":
    main()
