"""A folder as a source of photos: every file below it, as it is met, with size and time as its etag."""

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vehclass.errors import ReadError, SourceNotFound
from vehclass.records import ImageRef, LeaseClaim, image_id

EPOCH: Final = datetime.fromtimestamp(0, UTC)
PAGE: Final = 1_000  # names: fewer than Azure lists at a time, since the next come at once and memory holds a few pages
# Opened without waiting: a named pipe would otherwise hold the reader for ever.
_TO_READ: Final = os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_BINARY", 0)


class FolderSource:
    """The files of a folder and of the folders in it.

    Names are paths below the folder with `/` between parts. Links to files are followed, links to folders
    are not, since they may lead in circles.
    """

    prefix = ""
    concurrency = 16  # a disk of its own needs one reader or two, a share on a slow network more

    def __init__(self, root: Path) -> None:
        try:
            found = root.is_dir()
        except OSError as error:  # a name that is too long, a link in a circle
            raise SourceNotFound(where=root, reason=error.strerror or "it cannot be opened") from error
        if not found:
            raise SourceNotFound(
                where=root, reason="it is a file, not a folder" if root.exists() else "there is no such folder"
            )
        self._root = root.resolve()
        self.url = self._root.as_uri()

    def check(self) -> None:
        """Raises SourceNotFound when the folder cannot be listed."""
        next(self._walk("", "\0"), None)

    def pages(self, prefix: str = "") -> Iterator[list[ImageRef]]:
        """Every file under a prefix, in pages; flat memory however many there are."""
        page: list[ImageRef] = []
        for name, entry in self._walk("", prefix):
            page.append(self._ref(name, entry))
            if len(page) == PAGE:
                yield page
                page = []
        if page:
            yield page

    def hold(self, claim: LeaseClaim) -> None:
        """Nothing: a folder has no leases."""

    def _walk(self, below: str, prefix: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
        folders = []
        try:
            with os.scandir(self._root / below) as entries:
                for entry in entries:
                    name = f"{below}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if f"{name}/".startswith(prefix) or prefix.startswith(f"{name}/"):
                            folders.append(f"{name}/")
                    elif name.startswith(prefix) and not _links_to_folder(entry):
                        yield name, entry
        except FileNotFoundError:
            if not below:
                raise SourceNotFound(where=self._root, reason="the folder is gone") from None
            return  # a folder that was taken away during the listing: so were its files
        except OSError as error:
            raise SourceNotFound(where=self._root / below, reason=error.strerror or "it cannot be listed") from error
        for folder in sorted(folders):
            yield from self._walk(folder, prefix)

    def _ref(self, name: str, entry: "os.DirEntry[str]") -> ImageRef:
        try:
            facts = entry.stat()
        except OSError:  # a link that leads nowhere: it is listed all the same, and reading it will tell
            return ImageRef(image_id(self.url, name), self.url, name, "gone", 0, EPOCH)
        try:
            modified = datetime.fromtimestamp(facts.st_mtime, UTC)
        except (ValueError, OverflowError, OSError):  # a time that no calendar has
            modified = EPOCH
        return ImageRef(image_id(self.url, name), self.url, name, _etag(facts), facts.st_size, modified)

    def read(self, ref: ImageRef) -> bytes:
        """The file's bytes, if it is still the one that was listed."""
        try:
            handle = os.open(f"{self._root}/{ref.name}", _TO_READ)
        except FileNotFoundError as error:
            raise ReadError("vanished", "It was gone when it was to be read.") from error
        except PermissionError as error:
            raise ReadError("forbidden", "The system does not let this user read it.") from error
        except OSError as error:
            raise ReadError("unreadable", f"It cannot be opened: {error.strerror}.") from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ReadError("not_a_file", "It is a pipe, a socket, a device or a folder.", permanent=True)
            # One byte more than was listed, and no more: a file that has grown meanwhile may be of any size.
            data = os.read(handle, ref.size + 1)
            while len(data) < ref.size and (more := os.read(handle, ref.size + 1 - len(data))):
                data += more
            if _etag(os.fstat(handle)) != ref.etag or len(data) != ref.size:
                raise ReadError("replaced", "It changed after it was listed; the next run takes it up.")
        except OSError as error:
            raise ReadError("unreadable", f"The disk could not read it: {error.strerror}.") from error
        finally:
            os.close(handle)
        return data


def _links_to_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a link to a folder; one that leads in a circle or out of reach is listed like a file."""
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:
        return False


def _etag(facts: os.stat_result) -> str:
    return f"{facts.st_size:x}-{facts.st_mtime_ns:x}"
