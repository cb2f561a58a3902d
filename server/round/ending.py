"""Tells sites that the run has ended, so that they hold its last version, give memory back, and wait no longer."""

from __future__ import annotations

from server.events import Emit, WarningIssued
from server.ledger.ledger import Ledger
from server.ledger.versions import PublishedState
from server.round.dispatch import Dispatcher
from server.round.intake import claimed_site
from server.round.open_round import OpenRound
from server.round.participants import Participants
from server.round.pending import PendingReplies
from server.transport.base import Incoming, Transport

PATIENCE = 30.0  # seconds that sites have to say that they know; who is busy is not waited for


def tell_end(
    ended: str,
    number: int,
    published: PublishedState,
    *,
    transport: Transport,
    participants: Participants,
    pending: PendingReplies,
    dispatcher: Dispatcher,
    ledger: Ledger,
    emit: Emit,
) -> None:
    """Send all connected sites the last version and the word that nothing more will be asked.

    Args:
        ended: how the run ends, one of ``train_task.ENDS``.
        number: one more than that of the last round.
        published: the last version.
        transport: tells who is connected.
        participants: knows who may still be at work on what was given up.
        pending: reads replies.
        dispatcher: sends tasks.
        ledger: has the books.
        emit: takes a warning about sites that were not reached.
    """
    ending = OpenRound(number=number, published=published, steps=0)
    nodes = transport.nodes()
    busy = [node for node in nodes if participants.owes(node)]
    dispatcher.tell_end([*nodes], ending, ended)
    not_awaited = [pending[node] for node in busy]
    pending.forget(not_awaited)
    pending.clear_deadline()
    pending.start_deadline(PATIENCE)
    for reply in pending.receive(ending):
        _record(reply, number, ledger)
        told = pending.take(reply.node)
        if told is not None:
            is_told = reply.status.get("status") == "ok"
            ledger.close_task(told.number, "told" if is_told else "refused")
    silent = [p.name for p in (*pending.all(), *not_awaited)]
    pending.forget(pending.all())
    ledger.close_tasks("untold")
    if silent:
        emit(WarningIssued(message=f"not known to have heard that the run has ended: {', '.join(sorted(silent))}"))


def _record(reply: Incoming, number: int, ledger: Ledger) -> None:
    """Record the bytes of a reply, as those of all others are."""
    if reply.error:
        return
    ledger.record_message(
        round_=number,
        node=reply.node,
        site=claimed_site(reply),
        direction="up",
        kind="late" if reply.late else "end",
        payload=len(reply.payload),
        digest=reply.digest,
        protocol=reply.protocol,
    )
