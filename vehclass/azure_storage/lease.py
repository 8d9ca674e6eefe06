"""A lease on a small blob beside the photos: a second guard, at the source, of one run at a time.

It is worth having where the store's own lease may be in doubt: a database that was put back from a copy, or one whose
clock jumped. What a run may write, the store's fencing number decides all the same.
"""

import hashlib
import logging
from contextlib import suppress
from functools import partial
from typing import Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import BlobClient, BlobLeaseClient

from vehclass.azure_storage.containers import Container, first_line
from vehclass.azure_storage.patience import code_of, patiently, status_of
from vehclass.errors import AccessDenied, LeaseHeld, LeaseLost, SourceNotFound, UsageError
from vehclass.records import LeaseClaim

log = logging.getLogger(__name__)

FOLDER: Final = ".vehclass/"  # whose blobs are no photos
SECONDS: Final = 60  # the longest that the service grants, short of for ever
# What the service says to whoever comes second at the same moment.
TOO_LATE: Final = frozenset(
    {"LeaseAlreadyPresent", "LeaseIdMissing", "ConditionNotMet", "LeaseIsBreakingAndCannotBeAcquired"}
)


class BlobLease:
    """A lease that was taken, and runs out by itself if it is not renewed."""

    def __init__(self, container: Container, lease: Any) -> None:
        self._container = container
        self._lease = lease

    def renew(self) -> None:
        """Keeps it for another minute; raises LeaseLost where it is another's by now, or its blob is gone."""
        try:
            patiently(self._lease.renew)
        except AzureError as error:
            if status_of(error) in (404, 409, 412):
                raise LeaseLost(holder="a later run") from error
            raise self._container.explained(error) from error

    def free(self) -> None:
        """Gives it back; where the service does not answer, it runs out."""
        with suppress(AzureError):
            self._lease.release()


def take(container: Container, claim: LeaseClaim) -> BlobLease | None:
    """The lease on the blob that stands for a claim; None where the identity may not write.

    A holder that `claim.is_dead` knows to be gone is not waited for. Raises LeaseHeld,
    SourceNotFound, ServiceUnreachable or UsageError.
    """
    name = f"{FOLDER}lease-{hashlib.sha256(claim.key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
    blob = container.client.get_blob_client(name)
    lease = BlobLeaseClient(blob)
    try:
        container.ask(partial(_take, blob, lease, claim))
    except AccessDenied:
        log.warning("no lease is taken in %s, since this identity may not write there", container.url)
        return None
    except SourceNotFound:
        raise
    except UsageError as error:
        cause = error.__cause__
        if isinstance(cause, AzureError) and code_of(cause) in TOO_LATE:
            raise LeaseHeld(holder="one that began at the same moment") from error
        reason = first_line(cause if isinstance(cause, AzureError) else error)
        raise UsageError(
            reason=f"{container.url}/{name} cannot be leased: {reason}. Set blob_lease = false."
        ) from error
    return BlobLease(container, lease)


def _take(blob: BlobClient, lease: Any, claim: LeaseClaim) -> None:
    """Takes the lease, from a dead holder if need be; again does no harm, since a lease knows its own id.

    Who takes it is written first, which a lease of another forbids: a run that is killed in between leaves nothing to
    wait for. What is broken or taken after that is the blob as it was seen, and no later one's: leases leave its etag alone.
    """
    mine = {"holder": claim.holder.encode("ascii", "replace").decode(), "run": claim.run_id}  # as headers can have it
    unchanged: dict[str, Any] = {"match_condition": MatchConditions.IfNotModified}
    try:
        etag = blob.upload_blob(b"", overwrite=True, metadata=mine)["etag"]
    except HttpResponseError as error:
        if code_of(error) != "LeaseIdMissing":
            raise
        held = blob.get_blob_properties()
        etag = held.etag
        holder, run = held.metadata.get("holder", ""), held.metadata.get("run", "unknown")
        if run != claim.run_id:  # else it is ours, and the answer was lost
            if not holder or not claim.is_dead(holder):
                raise LeaseHeld(holder=f"{run} on {holder.split(' ')[0] or 'another machine'}") from error
            lease.break_lease(lease_break_period=0, etag=etag, **unchanged)
            etag = blob.upload_blob(b"", overwrite=True, metadata=mine, etag=etag, **unchanged)["etag"]
    lease.acquire(lease_duration=SECONDS, etag=etag, **unchanged)
