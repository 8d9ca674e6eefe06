"""GET requests with the SDK's own signing, without its transport and the objects that it makes of answers.

Those cost more than the rest (docs/performance.md), and a million names or photos wait for it while the others work.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from io import BytesIO
from typing import Final, NamedTuple
from urllib.parse import quote, unquote
from uuid import uuid4
from xml.etree import ElementTree

from azure.core.exceptions import HttpResponseError, IncompleteReadError
from azure.core.pipeline import Pipeline
from azure.core.rest import HttpRequest
from azure.storage.blob import ContainerClient

from vehclass import __version__
from vehclass.azure_storage.wire import Answer, Wire

MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), start=1
    )
}

IN_A_QUERY: Final = "!$%&'()*+,-./:;=?@_~"  # what may stand in one as it is, the sign of what is encoded among it

MOST_OF_A_PAGE: Final = 64 * 2**20  # of a listing: 5,000 names of 1,024 characters with their facts are some 30 MB


@dataclass(frozen=True, slots=True)
class Line:
    """A container as its GET requests reach it: its URL without a secret, its SAS if it has one, what signs and sends."""

    url: str
    sas: str
    version: str
    pipeline: Pipeline[HttpRequest, Answer]

    @classmethod
    def of(cls, client: ContainerClient, connections: int) -> "Line":
        """The line to a client's container, with the client's way of signing, for so many threads at a time."""
        url, _, sas = client.url.partition("?")
        sas = quote(sas, safe=IN_A_QUERY)
        # A policy knows the one after it: the SDK's own goes on to the SDK's transport, and its copy to ours.
        signing = copy(client._credential_policy)
        return cls(url, sas, client.api_version, Pipeline(Wire(url, connections), [signing] if signing else []))


class Listed(NamedTuple):
    """A blob as a listing tells of it."""

    name: str
    etag: str
    size: int
    modified_at: datetime


def list_page(line: Line, prefix: str, marker: str, most: int, **patience: float) -> tuple[list[Listed], str]:
    """A page of a container's blobs in the order of their names, and the marker of the next, '' on the last.

    `patience` is connection_timeout and read_timeout, where other seconds count than usually.

    Raises AzureError.
    """
    asked = {"restype": "container", "comp": "list", "maxresults": str(most)}
    asked |= {"prefix": prefix} if prefix else {}
    asked |= {"marker": marker} if marker else {}
    body = get(line, "", asked, {}, MOST_OF_A_PAGE, **patience).content
    try:
        found = []
        for _, answer in ElementTree.iterparse(BytesIO(body)):  # noqa: S314  (as `_xml`); the last to end is the whole
            if answer.tag == "Blob":
                found.append(_listed(answer))
                answer.clear()  # a page's tree would be some 20 MB
        following = answer.find("NextMarker")
        if answer.tag != "EnumerationResults" or following is None:  # a page of something on the way
            raise ValueError("it is no list of blobs")
        return found, following.text or ""
    except (ElementTree.ParseError, KeyError, ValueError, LookupError) as error:
        raise IncompleteReadError(f"The listing came damaged: {error}") from error


def get(
    line: Line, path: str, query: Mapping[str, str], headers: Mapping[str, str], most: int, **patience: float
) -> Answer:
    """The answer to a GET below a container, with its body of `most` bytes at most; raises AzureError for any but 200."""
    words = [*([line.sas] if line.sas else []), *(f"{name}={quote(value, safe='')}" for name, value in query.items())]
    url = f"{line.url}/{quote(path, safe='/~')}" if path else line.url
    request = HttpRequest(
        "GET",
        f"{url}?{'&'.join(words)}" if words else url,
        headers={
            "x-ms-version": line.version,
            "x-ms-date": formatdate(usegmt=True),
            "x-ms-client-request-id": str(uuid4()),
            "User-Agent": f"vehclass/{__version__}",
            "Accept-Encoding": "identity",
            **headers,
        },
    )
    answer = line.pipeline.run(request, most=most, **patience).http_response
    if answer.status_code != 200:
        raise _refused(answer)
    return answer


def _refused(response: Answer) -> HttpResponseError:
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
    etag = facts["Etag"].strip('"')
    if not (etag.isascii() and etag.isprintable()):  # which no request could ask for
        raise ValueError("an etag has characters that no header can have")
    return Listed(text, etag, int(facts["Content-Length"]), _moment(facts["Last-Modified"]))


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
