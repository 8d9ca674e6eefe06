"""Turns a listing into what the store has to be asked about, and remembers what was done with for the next run.

A listing is cut into stretches of some thousand names, at places that the names themselves decide, so that a new name
changes only the stretch that it falls into. A run that accounted for every name leaves a Mark: when it began, and a
fingerprint of the names and etags of each stretch that are older than that. The next run asks the store about what is
newer, and about every name of a stretch that has another fingerprint. No clock has to be right for that: a photo that
is replaced, restored or moved in with an old time changes its stretch, and is asked about. A mark is only good as long as
the store holds what it held: `marks.py` sees to that.
"""

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Final

from vehclass.records import ImageRef, iso

STRETCH: Final = 8192  # names, on average
LONGEST: Final = 2 * STRETCH  # names that may be held at a time
DIGEST_BYTES: Final = 12  # the stretches of 50 million names: two are alike by chance once in 10^20 listings
MOST_AGAIN: Final = 8_000  # images to try again that a mark may name; with more of them, no mark is left
MOST_STRETCHES: Final = 40_000  # of some 300 million names; with more of them, none either: a mark is below a megabyte
MOST_ASKED: Final = 5_000  # names that the store is asked about at once
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """What a run that accounted for every name leaves for the next."""

    began: datetime
    stretches: frozenset[bytes]
    again: frozenset[str]  # image_ids whose failure may pass
    prefixes: tuple[str, ...] = ("",)  # what was listed

    def as_text(self) -> str:
        """JSON, of about 16 bytes a stretch."""
        joined = b64encode(b"".join(sorted(self.stretches))).decode()
        facts = {"format": FORMAT, "began": iso(self.began), "stretches": joined, "again": sorted(self.again)}
        return json.dumps({**facts, "prefixes": self.prefixes})


def read_mark(text: str | None) -> Mark | None:
    """A mark as `as_text` wrote it; None for what this version of vehclass cannot read, which only costs a question more."""
    try:
        found = json.loads(text or "")
        if found["format"] != FORMAT:
            return None
        joined = b64decode(found["stretches"], validate=True)
        pieces = frozenset(joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES))
        began, again = datetime.fromisoformat(found["began"]), frozenset(found["again"])
        return Mark(began, pieces, again, tuple(found["prefixes"]))
    except (ValueError, TypeError, KeyError):
        return None


def in_common(marks: Sequence[Mark | None]) -> Mark | None:
    """What runs of several models left together; None unless all of them are of one run."""
    first, *others = marks
    if first is None:
        return None
    again = set(first.again)
    for mark in others:
        if mark is None or (mark.began, mark.stretches) != (first.began, first.stretches):
            return None
        again |= mark.again
    return Mark(first.began, first.stretches, frozenset(again), first.prefixes)


class Listing:
    """One run's walk over a listing: with the mark of the run before, if there is one, and towards the next mark."""

    def __init__(self, before: Mark | None, began: datetime) -> None:
        self._before = before
        self._began = began
        self._seen: set[bytes] = set()
        self._again: set[str] = set()

    def to_ask(self, pages: Iterable[Sequence[ImageRef]]) -> Iterator[list[ImageRef]]:
        """Of the pages of a listing, in order, the names that the store has to be asked about."""
        return self._all(pages) if self._before is None else self._changed(pages, self._before)

    def _all(self, pages: Iterable[Sequence[ImageRef]]) -> Iterator[list[ImageRef]]:
        after = _Cut(self._began)
        for page in pages:
            for ref in page:
                self._remember(after.add(ref, _line(ref)))
            yield list(page)
        self._remember(after.end())

    def _changed(self, pages: Iterable[Sequence[ImageRef]], before: Mark) -> Iterator[list[ImageRef]]:
        """What is newer than the mark, what it says to try again, and all of each stretch that it does not know.

        Asked in ever larger portions: the first photos are worked on at once, and many names need few questions.
        """
        old, after = _Cut(before.began), _Cut(self._began)
        held: list[ImageRef] = []  # the present stretch's, until its end tells whether it is known
        asked: list[ImageRef] = []
        portion = 1

        def end_stretch(fingerprint: bytes | None) -> None:
            if fingerprint is not None:
                asked.extend(held if fingerprint not in before.stretches else ())
                held.clear()

        for page in pages:
            for ref in page:
                line = _line(ref)
                self._remember(after.add(ref, line))
                if ref.modified_at >= before.began or ref.image_id in before.again:
                    asked.append(ref)
                else:
                    held.append(ref)
                end_stretch(old.add(ref, line))
            while len(asked) >= portion:
                yield asked[:MOST_ASKED]
                del asked[:MOST_ASKED]
                portion = min(2 * portion, MOST_ASKED)
        self._remember(after.end())
        end_stretch(old.end())
        for start in range(0, len(asked), MOST_ASKED):
            yield asked[start : start + MOST_ASKED]

    def _remember(self, fingerprint: bytes | None) -> None:
        if fingerprint is not None:
            self._seen.add(fingerprint)

    def try_again(self, ref: ImageRef) -> None:
        """This one failed in a way that may pass."""
        if len(self._again) <= MOST_AGAIN:
            self._again.add(ref.image_id)

    def mark(self, prefixes: tuple[str, ...] = ("",)) -> Mark | None:
        """The next mark, of the prefixes that were listed, once every name is accounted for; None where it would be too large."""
        if len(self._again) > MOST_AGAIN or len(self._seen) > MOST_STRETCHES:
            return None
        return Mark(self._began, frozenset(self._seen), frozenset(self._again), prefixes)


class _Cut:
    """Cuts the names that are older than a moment into stretches, as they come."""

    def __init__(self, before: datetime) -> None:
        self._before = before
        self._names = 0
        self._digest = blake2b(digest_size=DIGEST_BYTES)

    def add(self, ref: ImageRef, line: bytes) -> bytes | None:
        """Takes a name; the fingerprint of the stretch that it ends, if it ends one."""
        if ref.modified_at >= self._before:
            return None
        self._digest.update(line)
        self._names += 1
        return self.end() if zlib.crc32(line) % STRETCH == 0 or self._names == LONGEST else None

    def end(self) -> bytes | None:
        """The fingerprint of the stretch so far; None when nothing is in it."""
        if not self._names:
            return None
        fingerprint = self._digest.digest()
        self._names, self._digest = 0, blake2b(digest_size=DIGEST_BYTES)
        return fingerprint


def _line(ref: ImageRef) -> bytes:
    """What tells a name at its content from any other."""
    return f"{len(ref.name)} {ref.name} {ref.etag}\n".encode("utf-8", "surrogateescape")
