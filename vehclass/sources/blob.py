"""An Azure Blob container as a source of photos: listed page by page, read at the listed etag, checked."""

import hashlib
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from typing import Final

from azure.core.exceptions import AzureError

from vehclass.azure_storage import lease
from vehclass.azure_storage.containers import Container
from vehclass.azure_storage.get import get, list_page
from vehclass.azure_storage.options import BlobOptions
from vehclass.azure_storage.patience import code_of, patiently, status_of
from vehclass.azure_storage.room import Room
from vehclass.azure_storage.wire import Overtaken
from vehclass.errors import ReadError, VehclassError
from vehclass.records import ImageRef, LeaseClaim, image_id

PAGE: Final = 5_000  # names, the most that the service lists at a time
LEAST: Final = 65_536  # bytes that any answer may have, since a refusal has a body, too
LOOK_LASTS: Final = 5.0  # for so long one look at the service counts for all readers


class BlobSource:
    """The blobs of a container under a prefix, read from several threads at once."""

    def __init__(self, container: Container, options: BlobOptions) -> None:
        self._container = container
        self._client, self._line = container.client, container.line
        self.prefix = container.prefix
        self.concurrency = options.concurrency
        self._room = Room(options.concurrency)
        self._leases = options.lease
        self.url = container.url
        self._look_turn = threading.Lock()
        # When the service was last tried, and what was wrong with it.
        self._look: tuple[float, VehclassError | None] | None = None

    def check(self) -> None:
        """Asks for one name: raises SourceNotFound, AccessDenied, UsageError or ServiceUnreachable."""
        self._container.ask(self._one_name)

    def _one_name(self) -> None:
        list_page(self._line, "", "", 1)

    def pages(self, prefix: str = "") -> Iterator[list[ImageRef]]:
        """Every blob under a prefix, a page of the service's at a time."""
        marker = ""
        while True:
            page = partial(list_page, self._line, self.prefix + prefix, marker, PAGE)
            found, marker = self._container.ask(partial(self._room.watch, page))
            photos = [
                one for one in found if not f"{one.name}/".startswith(lease.FOLDER)
            ]  # which some accounts list, too
            yield [ImageRef(image_id(self.url, one.name), self.url, *one) for one in photos]
            if not marker:
                return

    def hold(self, claim: LeaseClaim) -> lease.BlobLease | None:
        """A lease in the container, where that is asked for and the identity may write; raises LeaseHeld."""
        return lease.take(self._container, claim) if self._leases else None

    def read(self, ref: ImageRef) -> bytes:
        """The blob's bytes at the listed etag, of the announced length and with the announced MD5."""
        with self._room.place():  # before the patience begins, which is for the service
            return self._read(ref)

    def _read(self, ref: ImageRef) -> bytes:
        try:
            return patiently(partial(self._download, ref))
        except _Damaged as error:
            raise ReadError("damaged_in_transit", f"It arrived damaged more than once: {error}.") from error
        except AzureError as error:
            code = code_of(error)
            if status_of(error) == 412 and self._is_there(ref):
                raise ReadError("replaced", "It was replaced after it was listed; the next run takes it up.") from error
            if status_of(error) == 412 or code == "BlobNotFound":  # some services say the first of a blob that is gone
                raise ReadError("vanished", "It was deleted after it was listed.") from error
            if code == "BlobArchived":
                raise ReadError("archived", "It lies in the archive tier and must be rehydrated first.") from error
            problem = self._problem()
            if problem is not None:  # not this blob is to blame
                self._room.dismiss(problem)
                raise problem from error
            if status_of(error) is None:
                raise ReadError("timeout", "It did not arrive to its end.") from error
            if status_of(error) == 403:
                raise ReadError("forbidden", f"The service does not let this identity read it ({code}).") from error
            raise ReadError("unreadable", f"The service would not give it ({code}).") from error

    def _is_there(self, ref: ImageRef) -> bool:
        try:
            return bool(patiently(self._client.get_blob_client(ref.name).exists))
        except AzureError:
            return True

    def _download(self, ref: ImageRef) -> bytes:
        at_etag = {"If-Match": f'"{ref.etag}"'}
        answer = self._room.watch(lambda: get(self._line, ref.name, {}, at_etag, max(ref.size, LEAST)))
        data = answer.content
        if len(data) != ref.size:
            raise _Damaged(f"{len(data)} of {ref.size} bytes")
        md5 = answer.headers.get("Content-MD5")
        if md5 and hashlib.md5(data, usedforsecurity=False).digest() != b64decode(md5):
            raise _Damaged("its MD5 differs")
        return data

    def _problem(self) -> VehclassError | None:
        """What is wrong with the container as a whole, if anything: tells one bad blob from a dead service.

        Asked once for all readers that wonder at the same time.
        """
        with self._look_turn:
            if self._look is None or time.monotonic() - self._look[0] > LOOK_LASTS:
                problem: VehclassError | None = None
                try:
                    list_page(self._line, "", "", 1, connection_timeout=4, read_timeout=2)
                except Overtaken:  # busy, not away
                    pass
                except AzureError as error:
                    problem = self._container.explained(error)
                self._look = (time.monotonic(), problem)
            return self._look[1]


class _Damaged(AzureError):
    """A body that is not what the service announced."""
