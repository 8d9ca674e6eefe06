"""GET requests through the SDK's own pipeline: its signing and its transport, without the objects that it makes of answers.

Those cost more than the rest: a name of a listing takes a ninth of the CPU here, a blob of 100 kB two thirds
(docs/performance.md), and a million names or photos wait for it while the others work.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from azure.core.exceptions import AzureError, HttpResponseError, IncompleteReadError
from azure.core.rest import HttpRequest
from azure.storage.blob import ContainerClient

MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), start=1
    )
}


MOST_OF_A_PAGE: Final = 64 * 2**20  # of a listing: 5,000 names of 1,024 characters with their facts are some 30 MB


class BrokenOff(IncompleteReadError):
    """An answer that began and did not come to its end."""


class Listed(NamedTuple):
    """A blob as a listing tells of it."""

    name: str
    etag: str
    size: int
    modified_at: datetime


def list_page(
    client: ContainerClient, prefix: str, marker: str, most: int, **patience: float
) -> tuple[list[Listed], str]:
    """A page of a container's blobs in the order of their names, and the marker of the next, '' on the last.

    `patience` is connection_timeout and read_timeout, where other seconds count than the client's.

    Raises AzureError.
    """
    asked = {"restype": "container", "comp": "list", "maxresults": str(most)}
    asked |= {"prefix": prefix} if prefix else {}
    asked |= {"marker": marker} if marker else {}
    body = get(client, "", asked, {}, MOST_OF_A_PAGE, **patience).content
    try:
        answer = _xml(body)
        following = answer.find("NextMarker")
        if answer.tag != "EnumerationResults" or following is None:  # a page of something on the way
            raise ValueError("it is no list of blobs")
        return [_listed(blob) for blob in answer.iterfind("Blobs/Blob")], following.text or ""
    except (ElementTree.ParseError, KeyError, ValueError, LookupError) as error:
        raise IncompleteReadError(f"The listing came damaged: {error}") from error


def get(
    client: ContainerClient,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    most: int,
    **patience: float,
) -> Any:
    """The answer to a GET below a container, with its body of `most` bytes at most; raises AzureError for any but 200."""
    endpoint, _, sas = client.url.partition("?")
    words = [*([sas] if sas else []), *(f"{name}={quote(value, safe='')}" for name, value in query.items())]
    url = f"{endpoint}/{quote(path, safe='/~')}" if path else endpoint
    request = HttpRequest(
        "GET",
        f"{url}?{'&'.join(words)}" if words else url,
        headers={"x-ms-version": client.api_version, "Accept-Encoding": "identity", **headers},
    )
    # Streaming, since otherwise the pipeline makes text or XML of the body by itself.
    response = client._pipeline.run(request, stream=True, **patience).http_response
    try:
        _read(response, most)
    except AzureError as error:
        raise BrokenOff(f"The body broke off: {error}") from error
    if response.status_code != 200:
        raise _refused(response)
    return response


def _read(response: Any, most: int) -> None:
    """Reads a body into memory, unless it is larger than it may be, or would be once it is unpacked."""
    length = response.headers.get("Content-Length", "")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise IncompleteReadError("it is compressed, which nobody asked for")
    if length.isdecimal():
        if int(length) > most:
            raise IncompleteReadError(f"{length} bytes were announced where {most} are the most")
        response.read()
        return
    parts, count = [], 0
    for part in response.iter_bytes():
        parts.append(part)
        count += len(part)
        if count > most:
            raise IncompleteReadError(f"more than {most} bytes arrived")
    response._content = b"".join(parts)


def _refused(response: Any) -> HttpResponseError:
    """The service's refusal as the SDK raises it: with the status, the service's own word for it, and its sentence."""
    code, message = response.headers.get("x-ms-error-code"), response.reason
    try:
        said = _xml(response.content)
        code, message = said.findtext("Code") or code, said.findtext("Message") or message
    except (ElementTree.ParseError, ValueError, LookupError):  # no body, or that of something on the way
        pass
    error = HttpResponseError(message, response=response)
    error.error_code = code  # type: ignore[attr-defined]  # as on the SDK's own
    return error


def _xml(body: bytes) -> ElementTree.Element:
    """The XML of an answer; expat, which reads it, loads nothing from elsewhere and stops at entities that grow."""
    return ElementTree.fromstring(body)  # noqa: S314  (as the SDK does)


def _listed(blob: ElementTree.Element) -> Listed:
    """A blob of a listing; raises KeyError for what it lacks, ValueError for what is not written as it should be."""
    name = blob.find("Name")
    facts = {one.tag: one.text or "" for one in blob.iterfind("Properties/*")}
    text = (name.text or "") if name is not None else ""
    if name is not None and name.get("Encoded") == "true":  # what XML cannot hold
        text = unquote(text)
    return Listed(text, facts["Etag"].strip('"'), int(facts["Content-Length"]), _moment(facts["Last-Modified"]))


def _moment(text: str) -> datetime:
    """A time such as `Tue, 10 Nov 2026 10:00:00 GMT`, which is how HTTP writes them."""
    return datetime(
        int(text[12:16]),
        MONTHS[text[8:11]],
        int(text[5:7]),
        int(text[17:19]),
        int(text[20:22]),
        int(text[23:25]),
        tzinfo=UTC,
    )
