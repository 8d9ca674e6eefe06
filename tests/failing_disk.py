"""A disk under SQLite that writes down all that it is told, fails where it is told to, and can lose its power.

It stands between the SQLite library that Python's `sqlite3` has loaded and the real files, as a VFS
(https://www.sqlite.org/vfs.html) made with ctypes, so that the store and the library under test are those
that a run has: no other binding, no other version, no setting of its own.
"""

import _sqlite3
import ctypes
import errno
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECTOR = 512  # bytes that a disk writes whole or not at all

# What was told to the disk, in order: ("make", name, file), ("write", file, offset, bytes), ("truncate", file, size),
# ("sync", file, whether it came back well), ("delete", name), ("sync folder",). A file is a number, as a name may pass
# from one file to another. Before them, ("found", name, file, bytes) is what was there already; among them,
# ("note", ...) is what a test wants to remember of a moment.
Event = tuple[Any, ...]

_READ = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_SIZE = CFUNCTYPE(c_int, c_void_p, POINTER(c_int64))
_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
_SET_CALL = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GET_CALL = CFUNCTYPE(c_void_p, c_void_p, c_char_p)
_OPEN_FOLDER = CFUNCTYPE(c_int, c_char_p, POINTER(c_int))


class _Methods(Structure):
    """sqlite3_io_methods: what can be done to an open file."""

    _fields_ = [
        ("iVersion", c_int),
        ("xClose", c_void_p),
        ("xRead", _READ),
        ("xWrite", _WRITE),
        ("xTruncate", _TRUNCATE),
        ("xSync", _SYNC),
        ("xFileSize", _SIZE),
        *((name, c_void_p) for name in ("xLock", "xUnlock", "xCheckReservedLock", "xFileControl", "xSectorSize")),
        *((name, c_void_p) for name in ("xDeviceCharacteristics", "xShmMap", "xShmLock", "xShmBarrier", "xShmUnmap")),
        *((name, c_void_p) for name in ("xFetch", "xUnfetch")),
    ]


class _File(Structure):
    """sqlite3_file, as far as all of them begin alike."""

    _fields_ = [("pMethods", POINTER(_Methods))]


class _Vfs(Structure):
    """sqlite3_vfs: what can be done with names."""

    _fields_ = [
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", _OPEN),
        ("xDelete", _DELETE),
        *((name, c_void_p) for name in ("xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose")),
        *((name, c_void_p) for name in ("xRandomness", "xSleep", "xCurrentTime", "xGetLastError")),
        ("xCurrentTimeInt64", c_void_p),
        ("xSetSystemCall", _SET_CALL),
        ("xGetSystemCall", _GET_CALL),
        ("xNextSystemCall", c_void_p),
    ]


def _library() -> ctypes.CDLL | None:
    """The SQLite library that Python's own module uses; None where it cannot be reached."""
    try:
        library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
        library.sqlite3_libversion.restype = c_char_p
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        library.sqlite3_vfs_find.argtypes = [c_char_p]
        library.sqlite3_vfs_register.argtypes = [POINTER(_Vfs), c_int]
        library.sqlite3_vfs_unregister.argtypes = [POINTER(_Vfs)]
        same = library.sqlite3_libversion().decode() == sqlite3.sqlite_version
        return library if same and library.sqlite3_vfs_find(None)[0].zName == b"unix" else None
    except (AttributeError, OSError, ValueError):
        return None


LIBRARY = _library()


@dataclass(frozen=True)
class Fault:
    """The n-th call of a kind, counted from 1, answers a code of SQLite's; all after it, too, where it is lasting."""

    call: str  # open, read, write, truncate, sync, size, delete or sync folder
    number: int
    code: int
    lasting: bool = False


class Disk:
    """What SQLite sees of a folder while the block lasts; `log` has what it was told, `calls` how often."""

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        self.folder = folder.resolve()
        self.fault = fault
        self.log: list[Event] = []
        self.calls: Counter[str] = Counter()
        self.failed = False  # whether the fault has come
        self._files: dict[int, int] = {}  # by the address of SQLite's handle: the file
        self._methods_below: dict[int, _Methods] = {}  # by the same: how the VFS below does it
        self._methods: dict[int, _Methods] = {}  # by the address of such methods: ours, which stand before them
        self._numbers: dict[str, int] = {}  # by name: the file that bears it
        assert LIBRARY is not None
        self._vfs_below = LIBRARY.sqlite3_vfs_find(None)
        self._below = self._vfs_below[0]
        self._vfs = _Vfs.from_buffer_copy(self._below)
        self._vfs.zName = b"failing-disk"
        self._vfs.xOpen = _OPEN(self._open)
        self._vfs.xDelete = _DELETE(self._delete)
        self._folder_opener_below = self._below.xGetSystemCall(self._vfs_below, b"openDirectory")
        self._folder_opener = _OPEN_FOLDER(self._open_folder)

    def __enter__(self) -> "Disk":
        assert LIBRARY is not None
        for path in sorted(path for path in self.folder.iterdir() if path.is_file()):
            self._numbers[path.name] = len(self.log)
            self.log.append(("found", path.name, len(self.log), path.read_bytes()))
        self._below.xSetSystemCall(self._vfs_below, b"openDirectory", ctypes.cast(self._folder_opener, c_void_p))
        LIBRARY.sqlite3_vfs_register(self._vfs, 1)
        return self

    def __exit__(self, *error: object) -> None:
        assert LIBRARY is not None
        LIBRARY.sqlite3_vfs_unregister(self._vfs)
        self._below.xSetSystemCall(self._vfs_below, b"openDirectory", None)

    def note(self, *what: object) -> None:
        """Remembers something of this moment."""
        self.log.append(("note", *what))

    def _fails(self, call: str) -> int:
        """The code that this call answers, 0 where it is done."""
        self.calls[call] += 1
        fault, number = self.fault, self.calls[call]
        if fault is None or fault.call != call or not (number == fault.number or (fault.lasting and self.failed)):
            return 0
        self.failed = True
        return fault.code

    def _name(self, address: int | None) -> str | None:
        """The name of a file in our folder; None for any other, such as SQLite's own temporary ones."""
        path = Path(os.fsdecode(ctypes.string_at(address))) if address else None
        return path.name if path and path.parent == self.folder else None

    def _open(self, vfs: int, address: int | None, file: int, flags: int, out: int | None) -> int:
        name = self._name(address)
        if name is None:
            return int(self._below.xOpen(vfs, address, file, flags, out))
        _File.from_address(file).pMethods = None
        if failure := self._fails("open"):
            return failure
        new = not (self.folder / name).exists()
        answer = int(self._below.xOpen(vfs, address, file, flags, out))
        if answer:
            return answer
        if new:
            self._numbers[name] = len(self.log)
            self.log.append(("make", name, len(self.log)))
        self._files[file] = self._numbers[name]
        self._stand_between(file)
        return 0

    def _stand_between(self, file: int) -> None:
        opened = _File.from_address(file)
        below = opened.pMethods[0]
        key = ctypes.addressof(below)
        if key not in self._methods:
            ours = _Methods.from_buffer_copy(below)
            ours.xRead = _READ(self._read)
            ours.xWrite = _WRITE(self._write)
            ours.xTruncate = _TRUNCATE(self._truncate)
            ours.xSync = _SYNC(self._sync)
            ours.xFileSize = _SIZE(self._size)
            self._methods[key] = ours
        self._methods_below[file] = below
        opened.pMethods = ctypes.pointer(self._methods[key])

    def _read(self, file: int, buffer: int, amount: int, offset: int) -> int:
        return self._fails("read") or int(self._methods_below[file].xRead(file, buffer, amount, offset))

    def _write(self, file: int, buffer: int, amount: int, offset: int) -> int:
        failure = self._fails("write")
        written = amount // 2 if failure else amount  # what fails has been done in part
        answer = int(self._methods_below[file].xWrite(file, buffer, written, offset)) if written else 0
        if answer == 0:
            self.log.append(("write", self._files[file], offset, ctypes.string_at(buffer, written)))
        return failure or answer

    def _truncate(self, file: int, size: int) -> int:
        if failure := self._fails("truncate"):
            return failure
        answer = int(self._methods_below[file].xTruncate(file, size))
        if answer == 0:
            self.log.append(("truncate", self._files[file], size))
        return answer

    def _sync(self, file: int, flags: int) -> int:
        failure = self._fails("sync")
        # First what it holds, then its name, as the VFS below does.
        self.log.append(("sync", self._files[file], not failure))
        return failure or int(self._methods_below[file].xSync(file, flags))

    def _size(self, file: int, size: Any) -> int:
        return self._fails("size") or int(self._methods_below[file].xFileSize(file, size))

    def _delete(self, vfs: int, address: int, sync_folder: int) -> int:
        name = self._name(address)
        if name is None:
            return int(self._below.xDelete(vfs, address, sync_folder))
        if failure := self._fails("delete"):
            return failure
        at, there = len(self.log), (self.folder / name).exists()
        answer = int(self._below.xDelete(vfs, address, sync_folder))
        if there and not (self.folder / name).exists():
            self.log.insert(at, ("delete", name))  # the folder is synced after it, within that call
        return answer

    def _open_folder(self, path: bytes, descriptor: Any) -> int:
        """Called by the VFS below when it is about to sync a folder, which cannot be seen otherwise."""
        if Path(os.fsdecode(path)).parent == self.folder and self._fails("sync folder"):
            descriptor[0] = os.open(os.devnull, os.O_RDONLY)  # which cannot be synced
            return 0
        answer = int(ctypes.cast(self._folder_opener_below, _OPEN_FOLDER)(path, descriptor))
        if answer == 0:
            self.log.append(("sync folder",))
        return answer


def runs_here() -> bool:
    """Whether this Python's SQLite can be given such a disk, and a sync of /dev/null fails as it should."""
    if LIBRARY is None:
        return False
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        os.fsync(null)
    except OSError as error:
        return error.errno == errno.EINVAL
    finally:
        os.close(null)
    return False


class Platter:
    """What lies on the disk for certain, and what it was told since, of which a power cut leaves any part."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._files: dict[int, bytearray] = {}
        self._pending: dict[int, list[Event]] = {}
        self._pending_names: list[Event] = []

    def tell(self, event: Event, chance: random.Random) -> None:
        """Takes the next event of a log."""
        match event:
            case ("found", name, number, content):
                self._names[name] = number
                self._files[number] = bytearray(content)
                self._pending[number] = []
            case ("make", _, number):
                self._files[number] = bytearray()
                self._pending[number] = []
                self._pending_names.append(event)
            case ("delete", _):
                self._pending_names.append(event)
            case ("write" | "truncate", number, *_):
                self._pending[number].append(event)
            case ("sync", number, well):
                # After a sync that failed, the system holds for written what may not be: no later sync writes it.
                _apply(self._files[number], self._pending[number], chance, 1.0 if well else 0.5)
                self._pending[number] = []
            case ("sync folder",):
                self._names = _named(self._names, self._pending_names)
                self._pending_names = []

    def cut(self, chance: random.Random) -> dict[str, bytes]:
        """The files as they may be found after a power cut at this moment."""
        likely = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        names = _named(self._names, [event for event in self._pending_names if chance.random() < likely])
        image = {}
        for name, number in names.items():
            content = bytearray(self._files[number])
            _apply(content, self._pending[number], chance, likely)
            image[name] = bytes(content)
        return image

    def now(self) -> dict[str, bytes]:
        """The files as a program sees them that asks at this moment."""
        image = {}
        for name, number in _named(self._names, self._pending_names).items():
            content = bytearray(self._files[number])
            _apply(content, self._pending[number], random.Random(0), 1.0)
            image[name] = bytes(content)
        return image


def _named(names: dict[str, int], events: Sequence[Event]) -> dict[str, int]:
    named = dict(names)
    for event in events:
        if event[0] == "make":
            named[event[1]] = event[2]
        else:
            named.pop(event[1], None)
    return named


def _apply(content: bytearray, events: Sequence[Event], chance: random.Random, likely: float) -> None:
    """Does to a file's content what was told, each of it as likely as that, and of some writes only some sectors."""
    for event in events:
        if event[0] == "truncate":
            if likely == 1 or chance.random() < likely:
                size = event[2]
                content[size:] = bytes(max(0, size - len(content)))
            continue
        _, _, offset, data = event
        torn = likely < 1 and chance.random() < 0.3
        whole = likely == 1 or chance.random() < likely
        if not torn and not whole:
            continue
        for start, end in _sectors(offset, len(data)) if torn else [(0, len(data))]:
            if not torn or chance.random() < 0.5:
                _put(content, offset + start, data[start:end])
            elif offset + end > len(content) and chance.random() < 0.5:
                # The file has grown, but what was to be there has not come: there is what was there before.
                _put(content, offset + start, chance.randbytes(end - start))


def _put(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def _sectors(offset: int, amount: int) -> Iterator[tuple[int, int]]:
    """A write's parts that lie in one sector each, from where to where in what is written."""
    start = 0
    while start < amount:
        end = min(amount, start + SECTOR - (offset + start) % SECTOR)
        yield start, end
        start = end


def crash_images(log: Sequence[Event], count: int, chance: random.Random) -> Iterator[tuple[int, dict[str, bytes]]]:
    """So many power cuts at random moments of a log: how many events came before, and the files found after it."""
    moments = Counter(chance.choices(range(1, len(log) + 1), k=count))
    platter = Platter()
    for at, event in enumerate(log, 1):
        platter.tell(event, chance)
        for _ in range(moments[at]):
            yield at, platter.cut(chance)
