"""A ledger of what was put into a container, and a checker that names what a store has lost, doubled or left stale."""

import hashlib
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Ledger:
    """The sha256 of each name's present content."""

    content: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> bytes:
        """Notes that a name now has this content; returns it."""
        self.content[name] = hashlib.sha256(data).hexdigest()
        return data

    def faults_of(self, store: Path) -> list[str]:
        """What a SQLite store says otherwise: a sentence for each name that is lost, doubled, stale, failed or unknown."""
        with closing(sqlite3.connect(store)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = db.execute(
                "SELECT i.name, i.sha256, o.status, i.etag = o.etag,"
                " (SELECT count(*) FROM prediction AS p WHERE p.image_seq = i.image_seq),"
                " (SELECT count(*) FROM probability AS p WHERE p.image_seq = i.image_seq),"
                " (SELECT count(*) FROM task), (SELECT count(*) FROM label)"
                " FROM image AS i JOIN outcome AS o USING (image_seq)"
            ).fetchall()
        times = Counter(name for name, *_ in rows)
        found = [f"{name} is lost" for name in self.content if name not in times]
        found += [f"{name} is there {count} times" for name, count in times.items() if count > 1]
        for name, digest, status, same, predictions, probabilities, tasks, labels in rows:
            if name not in self.content:
                found.append(f"{name} was never put in")
            elif status != "classified":
                found.append(f"{name} is {status}")
            elif digest != self.content[name] or not same:
                found.append(f"{name} is stale")
            elif (predictions, probabilities) != (tasks, labels):
                found.append(f"{name} has {predictions} predictions and {probabilities} probabilities")
        return found
