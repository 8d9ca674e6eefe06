"""One run, from its lease to its record: who may write, how it is kept, and what is said of it at the end."""

import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from vehclass.batch.pipeline import Hands, Job, Watch, classify_new
from vehclass.batch.ports import Hold, Store
from vehclass.errors import ExitCode, Interrupted, LeaseLost, VehclassError
from vehclass.holders import identity, is_gone, place_of
from vehclass.records import Counts, LeaseClaim, RunEnd, RunStart, RunTicket, now

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 120
HEARTBEAT_SECONDS: Final = 20


@dataclass(frozen=True, slots=True)
class Finished:
    """A model's run that came to its end by itself: its id, exit code, and counts as the store has them."""

    run_id: str
    model: str
    exit_code: ExitCode
    counts: Counts
    new: int


def run(job: Job, hands: Hands, watch: Watch, *, command: str, settings: str) -> list[Finished]:
    """Takes the lease of each model, classifies what is new, and records how it ended, whatever happens.

    `settings` is JSON without secrets. Raises LeaseHeld when another run is at it, Interrupted when
    `watch.stop` was set, and whatever stopped the work.
    """
    tickets = _take_leases(hands)
    if any(ticket.after_death for ticket in tickets) and hands.decode_apart is not None:
        log.warning("the last run here died without a word: images are decoded in processes of their own")
        hands = replace(hands, decode=hands.decode_apart)
    watch.begun([ticket.run_id for ticket in tickets])
    with ExitStack() as leases:
        for ticket in tickets:
            leases.callback(_free, hands.store, ticket)
        holds = [_hold(hands, ticket, leases) for ticket in tickets]
        with ExitStack() as records:
            for number, ticket in enumerate(tickets):
                start = RunStart(
                    ticket.run_id, command, hands.source.url, hands.models[number].key, settings, socket.gethostname()
                )
                records.enter_context(_recorded(hands, number, ticket, start, watch, holds[number]))
            classify_new(job, hands, tickets, watch)
            if watch.lost is not None:
                raise watch.lost
            if watch.stop.is_set():
                raise Interrupted(watch.signal, "What was finished is saved; run the same command again to go on.")
        return _end_all(hands, tickets, watch)


def _take_leases(hands: Hands) -> list[RunTicket]:
    """The lease of every model, or of none; raises LeaseHeld.

    Taken in an order that is the models' own, so that two runs of the same ones do not each get some.
    """
    tickets: dict[int, RunTicket] = {}
    try:
        for number, model in sorted(enumerate(hands.models), key=lambda pair: pair[1].version):
            run_id = f"{now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
            key = f"{hands.source.url} {model.version}"
            claim = LeaseClaim(key, run_id, identity(), LEASE_SECONDS, _is_gone)
            tickets[number] = hands.store.take_lease(claim)
    except BaseException:
        for ticket in tickets.values():
            _free(hands.store, ticket)
        raise
    return [tickets[number] for number in range(len(hands.models))]


def _hold(hands: Hands, ticket: RunTicket, leases: ExitStack) -> Hold | None:
    """The source's own lease for a ticket, where there is one, given back with the others; raises LeaseHeld."""
    claim = LeaseClaim(
        f"{ticket.lease_key} {place_of(hands.store.url)}", ticket.run_id, identity(), LEASE_SECONDS, _is_gone
    )
    hold = hands.source.hold(claim)
    if hold is not None:
        leases.callback(hold.free)
    return hold


def _is_gone(holder: str) -> bool:
    """Whether a holder has ended; so has what this very process was before it replaced itself."""
    return is_gone(holder) or holder == identity()


@contextmanager
def _recorded(
    hands: Hands, number: int, ticket: RunTicket, start: RunStart, watch: Watch, hold: Hold | None
) -> Iterator[None]:
    """Keeps a model's leases and its run's record while the block lasts, and writes why it broke off, if it does."""
    store = hands.store
    renewals: list[Callable[[], None]] = [partial(store.renew_lease, ticket, LEASE_SECONDS)]
    if hold is not None:
        renewals.append(hold.renew)
    try:
        store.start_run(start, hands.models[number])
        with ExitStack() as beating:
            for renew in renewals:  # each on a thread of its own, since one may wait for longer than another lasts
                beating.enter_context(_heartbeat(renew, watch))
            yield
    except BaseException as error:
        if not isinstance(error, LeaseLost) or _still_holds(store, ticket):
            _record_failure(store, ticket, error, watch, number)
        raise


def _still_holds(store: Store, ticket: RunTicket) -> bool:
    """Whether it was another model's lease that got lost."""
    try:
        store.renew_lease(ticket, LEASE_SECONDS)
    except VehclassError:
        return False
    return True


def _end_all(hands: Hands, tickets: Sequence[RunTicket], watch: Watch) -> list[Finished]:
    """Writes of each model's run that it came to its end; where that fails for one, still of the others."""
    profile = json.dumps(watch.profile.summary())
    ended: list[Finished] = []
    errors: list[VehclassError] = []
    for number, ticket in enumerate(tickets):
        new = watch.progress.new_to.get(number, 0)
        try:
            counts = hands.store.counts(ticket.run_id)
            code = ExitCode.SOME_IMAGES_FAILED if counts.failed else ExitCode.DONE
            hands.store.end_run(ticket.run_id, RunEnd("done", code, None, watch.progress.listed, new, profile))
        except VehclassError as error:
            errors.append(error)
        else:
            ended.append(Finished(ticket.run_id, hands.models[number].key, code, counts, new))
    if errors:
        raise errors[0]
    return ended


def _record_failure(store: Store, ticket: RunTicket, error: BaseException, watch: Watch, number: int) -> None:
    """Writes why a run stopped, and frees its lease; when the store is what failed, the first error is the one to tell."""
    status = "interrupted" if isinstance(error, Interrupted) else "failed"
    code = error.exit_code if isinstance(error, VehclassError | Interrupted) else ExitCode.FAILED
    message, new = str(error) or type(error).__name__, watch.progress.new_to.get(number, 0)
    profile = json.dumps(watch.profile.summary())
    try:
        store.end_run(ticket.run_id, RunEnd(status, code, message, watch.progress.listed, new, profile))
    except VehclassError as second:
        if str(second) != str(error):  # else it is the same trouble
            error.add_note(f"The run's end could not be recorded either: {second}")


def _free(store: Store, ticket: RunTicket) -> None:
    """Gives the lease back; where the store does not answer, it runs out by itself."""
    with suppress(VehclassError):
        store.free_lease(ticket)


@contextmanager
def _heartbeat(renew: Callable[[], None], watch: Watch) -> Iterator[None]:
    """Renews a lease in the background; one that is lost stops the run, and where it is the store's, its next save refuses."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            try:
                renew()
            except LeaseLost as error:
                watch.lost = error
                watch.stop.set()
                return
            except VehclassError:
                continue  # a locked store: the lease outlives several beats, and saving will tell

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
