"""An Azure Blob container as a source of photos: listed page by page, read at the listed etag, checked."""

import hashlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, ResourceModifiedError

from vehclass.azure_storage.containers import Container
from vehclass.azure_storage.patience import code_of, patiently, status_of
from vehclass.errors import ReadError, VehclassError
from vehclass.records import ImageRef, image_id

LOOK_LASTS: Final = 5.0  # for so long one look at the service counts for all readers


class BlobSource:
    """The blobs of a container under a prefix, read from several threads at once."""

    def __init__(self, container: Container, concurrency: int) -> None:
        self._container = container
        self._client = container.client
        self._prefix = container.prefix
        self.concurrency = concurrency
        self.url = container.url
        self._look_turn = threading.Lock()
        # When the service was last tried, and what was wrong with it.
        self._look: tuple[float, VehclassError | None] | None = None

    def check(self) -> None:
        """Asks for one name: raises SourceNotFound, AccessDenied, UsageError or ServiceUnreachable."""
        self._container.ask(self._one_name)

    def _one_name(self) -> None:
        next(self._client.list_blobs(results_per_page=1).by_page(), None)

    def pages(self, prefix: str = "") -> Iterator[list[ImageRef]]:
        """Every blob under a prefix, a page of the service's at a time."""
        token: str | None = None
        while True:
            found, token = self._container.ask(partial(self._page, prefix, token))
            yield [self._ref(blob) for blob in found]
            if not token:
                return

    def _page(self, prefix: str, token: str | None) -> tuple[list[Any], str | None]:
        # A new iterator a page: one that failed half-way could not be asked again.
        pages = self._client.list_blobs(
            name_starts_with=(self._prefix + prefix) or None, results_per_page=5_000
        ).by_page(token)
        found = list(next(pages, ()))
        return found, getattr(pages, "continuation_token", None)

    def _ref(self, blob: Any) -> ImageRef:
        return ImageRef(
            image_id(self.url, blob.name), self.url, blob.name, blob.etag.strip('"'), blob.size, blob.last_modified
        )

    def read(self, ref: ImageRef) -> bytes:
        """The blob's bytes at the listed etag, of the announced length and with the announced MD5."""
        try:
            return patiently(partial(self._download, ref))
        except ResourceModifiedError as error:
            # Some services say so of a blob that is gone, too.
            if self._is_there(ref):
                raise ReadError("replaced", "It was replaced after it was listed; the next run takes it up.") from error
            raise ReadError("vanished", "It was deleted after it was listed.") from error
        except _Damaged as error:
            raise ReadError("damaged_in_transit", f"It arrived damaged more than once: {error}.") from error
        except AzureError as error:
            code = code_of(error)
            if code == "BlobNotFound":
                raise ReadError("vanished", "It was deleted after it was listed.") from error
            if code == "BlobArchived":
                raise ReadError("archived", "It lies in the archive tier and must be rehydrated first.") from error
            problem = self._problem()
            if problem is not None:  # not this blob is to blame
                raise problem from error
            if status_of(error) is None:
                raise ReadError("timeout", "It stopped arriving half-way, more than once.") from error
            if status_of(error) == 403:
                raise ReadError("forbidden", f"The service does not let this identity read it ({code}).") from error
            raise ReadError("unreadable", f"The service would not give it ({code}).") from error

    def _is_there(self, ref: ImageRef) -> bool:
        try:
            return bool(patiently(self._client.get_blob_client(ref.name).exists))
        except AzureError:
            return True

    def _download(self, ref: ImageRef) -> bytes:
        stream = self._client.download_blob(
            ref.name, etag=f'"{ref.etag}"', match_condition=MatchConditions.IfNotModified, max_concurrency=1
        )
        data: bytes = stream.readall()
        if len(data) != ref.size:
            raise _Damaged(f"{len(data)} of {ref.size} bytes")
        md5 = stream.properties.content_settings.content_md5
        if md5 and hashlib.md5(data, usedforsecurity=False).digest() != bytes(md5):
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
                    next(
                        self._client.list_blobs(results_per_page=1, connection_timeout=2, read_timeout=2).by_page(),
                        None,
                    )
                except AzureError as error:
                    problem = self._container.explained(error)
                self._look = (time.monotonic(), problem)
            return self._look[1]


class _Damaged(AzureError):
    """A body that is not what the service announced."""
