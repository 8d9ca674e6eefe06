"""An Azure Blob container as a registry of models: in blocks, under conditions, each request with patience."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import BlobBlock, ContentSettings

from vehclass.azure_storage.containers import Container, first_line
from vehclass.azure_storage.patience import TRANSIENT_STATUS, code_of, patiently, status_of
from vehclass.errors import ModelRefused, RegistryAccessDenied, RegistryNotFound, UsageError, VehclassError
from vehclass.model.folder import FACTS_FILE, MAX_FACTS_BYTES
from vehclass.registry.layout import MAX_POINTER_BYTES, POINTER_FILE, Moved, Stored, is_name, is_version

T = TypeVar("T")

# Small enough that a slow line moves one within the time-outs, and that little is lost with one that fails.
BLOCK_BYTES: Final = 4 * 2**20
PAGE: Final = 5_000
_GONE: Final = (ResourceNotFoundError, ResourceModifiedError)
_OTHER: Final = (ResourceModifiedError, ResourceExistsError)  # somebody else was first


class BlobRegistry:
    """Models in blobs PREFIX/NAME/VERSION/<files> of a container."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._client = container.client
        prefix = container.prefix.strip("/")
        self._root = f"{prefix}/" if prefix else ""
        self.url = f"{container.url}/{prefix}".rstrip("/")

    def names(self) -> list[str]:
        """The names of all models, sorted."""
        found = (entry.name.removeprefix(self._root).rstrip("/") for entry in self._listed("", one_level=True))
        return sorted(name for name in found if is_name(name) and (self.versions(name) or self.pointer(name)))

    def versions(self, name: str, beginning: str = "") -> list[str]:
        """The complete versions of a model, sorted; only those that begin so."""
        found = set()
        for blob in self._listed(f"{name}/{beginning}"):
            version, _, file = blob.name.removeprefix(f"{self._root}{name}/").partition("/")
            if is_version(version) and file == FACTS_FILE:
                found.add(version)
        return sorted(found)

    def path(self, name: str, version: str) -> None:
        """Nothing of it lies on this machine."""

    def contents(self, name: str, version: str) -> dict[str, Stored]:
        """The files under NAME/VERSION/; empty when there is none."""
        found = {}
        for blob in self._listed(f"{name}/{version}/"):
            md5 = blob.content_settings.content_md5
            file = blob.name.removeprefix(f"{self._root}{name}/{version}/")
            found[file] = Stored(blob.size, bytes(md5).hex() if md5 else None, blob.etag.strip('"'))
        return found

    def read_facts(self, name: str, version: str) -> bytes | None:
        """A version's model.json, MAX_FACTS_BYTES + 1 at most; None when there is none."""
        found = self._read(f"{name}/{version}/{FACTS_FILE}", MAX_FACTS_BYTES + 1)
        return found[0] if found else None

    def download(self, name: str, version: str, file: str, stored: Stored, into: Path, moved: Moved) -> None:
        """Writes one of a version's files, of the size and etag that were listed, to a new file."""
        key = f"{name}/{version}/{file}"
        with into.open("xb") as opened:
            for offset in range(0, stored.size, BLOCK_BYTES):
                length = min(BLOCK_BYTES, stored.size - offset)
                try:
                    part = self._ask(partial(self._range, key, stored.etag, offset, length), _GONE)
                except _GONE as error:
                    reason = f"{file} was replaced or deleted while it was read"
                    raise ModelRefused(path=f"{self.url}/{name}/{version}", reason=reason) from error
                opened.write(part)
                moved(length)

    def upload(self, name: str, version: str, file: Path, moved: Moved) -> None:
        """Puts a file into a version under its own name, whole or not at all.

        Blocks are numbered alike by everyone, so two who put the same file at the same time do not disturb each other.
        """
        blob = self._client.get_blob_client(f"{self._root}{name}/{version}/{file.name}")
        blocks: list[BlobBlock] = []
        md5 = hashlib.md5(usedforsecurity=False)
        with file.open("rb") as opened:
            while part := opened.read(BLOCK_BYTES):
                block = base64.b64encode(f"{len(blocks):06d}".encode()).decode()
                self._ask(partial(blob.stage_block, block, part, length=len(part), validate_content=True))
                md5.update(part)
                blocks.append(BlobBlock(block))
                moved(len(part))
        settings = ContentSettings(content_md5=bytearray(md5.digest()))
        self._ask(partial(blob.commit_block_list, blocks, content_settings=settings))

    def finish(self, name: str, version: str, facts: bytes) -> None:
        """Puts model.json into a version, which makes it complete; one that is there stays as it is."""
        key = f"{self._root}{name}/{version}/{FACTS_FILE}"
        settings = ContentSettings("application/json")
        try:
            self._ask(partial(self._client.upload_blob, key, facts, overwrite=False, content_settings=settings), _OTHER)
        except _OTHER:
            return

    def pointer(self, name: str) -> tuple[bytes, str] | None:
        """A model's production.json with its etag; None when nothing was ever promoted."""
        return self._read(f"{name}/{POINTER_FILE}", MAX_POINTER_BYTES)

    def point(self, name: str, content: bytes, etag: str | None) -> bool:
        """Replaces production.json if its etag is still this (None: if there is none); says whether it did."""
        condition: dict[str, Any] = {"overwrite": False}
        if etag is not None:
            condition = {"overwrite": True, "etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified}
        key = f"{self._root}{name}/{POINTER_FILE}"
        settings = ContentSettings("application/json", cache_control="no-store")
        try:
            self._ask(partial(self._client.upload_blob, key, content, content_settings=settings, **condition), _OTHER)
        except _OTHER:
            # The answer to a first try may have been lost on its way: then what is there is ours.
            found = self.pointer(name)
            return found is not None and found[0] == content
        return True

    def _listed(self, below: str, *, one_level: bool = False) -> Iterator[Any]:
        """What is under a prefix, page by page; with `one_level`, the folders and blobs directly in it."""
        token: str | None = None
        while True:
            found, token = self._ask(partial(self._page, below, one_level, token))
            yield from found
            if not token:
                return

    def _page(self, below: str, one_level: bool, token: str | None) -> tuple[list[Any], str | None]:
        # A new iterator a page: one that failed half-way could not be asked again.
        listing = self._client.walk_blobs if one_level else self._client.list_blobs
        pages = listing(name_starts_with=f"{self._root}{below}" or None, results_per_page=PAGE).by_page(token)
        return list(next(pages, ())), getattr(pages, "continuation_token", None)

    def _read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        """The first `limit` bytes of a blob and its etag; None when it is not there."""

        def request() -> tuple[bytes, str]:
            try:
                stream = self._client.download_blob(f"{self._root}{key}", offset=0, length=limit, max_concurrency=1)
                return stream.readall(), stream.properties.etag.strip('"')
            except HttpResponseError as error:
                if code_of(error) != "InvalidRange":  # the service's answer when nothing is in it
                    raise
                return b"", self._client.get_blob_client(f"{self._root}{key}").get_blob_properties().etag.strip('"')

        try:
            return self._ask(request, _GONE)
        except ResourceNotFoundError:
            return None

    def _range(self, key: str, etag: str, offset: int, length: int) -> bytes:
        condition = MatchConditions.IfNotModified
        stream = self._client.download_blob(
            f"{self._root}{key}",
            offset=offset,
            length=length,
            etag=f'"{etag}"',
            match_condition=condition,
            max_concurrency=1,
        )
        part: bytes = stream.readall()
        if len(part) != length:
            raise _CutShort(f"{len(part)} of {length} bytes arrived")
        return part

    def _ask(self, request: Callable[[], T], through: tuple[type[AzureError], ...] = ()) -> T:
        """Runs a request; its errors become ours, but for those that the caller has an answer to."""
        try:
            return patiently(request)
        except AzureError as error:
            if isinstance(error, through) and code_of(error) != "ContainerNotFound":
                raise
            raise self._explained(error) from error
        except ValueError as error:  # the SDK on credentials that do not fit
            raise UsageError(reason=f"{self.url} cannot be asked: {first_line(error)}.") from error

    def _explained(self, error: AzureError) -> VehclassError:
        status, reason = status_of(error), first_line(error)
        if isinstance(error, ClientAuthenticationError) or status in (401, 403):
            return RegistryAccessDenied(service=self.url, reason=reason)
        if status == 404:
            return RegistryNotFound(where=self.url, reason="there is no such container")
        if status is not None and 400 <= status < 500 and status not in TRANSIENT_STATUS:
            return UsageError(reason=f"{self.url} refuses that: {reason} ({code_of(error)}).")
        return self._container.explained(error)


class _CutShort(AzureError):
    """A body that is shorter than what was asked for."""
