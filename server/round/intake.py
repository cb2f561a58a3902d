"""Takes in replies: the bytes of each are counted, and it is admitted or refused; ledger and events tell which."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fedcompress.adapters import Template, adapter_digest
from fedcompress.config.run_config import RunConfig
from fedcompress.errors import AdmissionError
from fedcompress.storage.failpoints import failpoint
from fedcompress.storage.tensor_file import TensorFile, write_tensor_file
from fedcompress.types import Tensors
from fedcompress.wire import Envelope
from server.events import Emit, ReplyAdmitted, ReplyRefused
from server.ledger.ledger import OWN_CODES, Ledger
from server.round.admission import Expected, admit_reply
from server.round.aggregation import AdmittedUpdate
from server.round.dispatch import Dispatcher
from server.round.open_round import OpenRound
from server.round.outliers import Outliers
from server.round.participants import Participants
from server.round.pending import PendingReplies, PendingReply
from server.round.signatures import SignaturePolicy
from server.transport.base import Incoming, Transport

MAX_SITE = 64  # characters that are kept of the site's name in a reply
MAX_CODE = 64  # characters that are kept of the failure code in a reply
MAX_MESSAGE = 2000  # characters that are kept of the text in a reply

# Codes of failures that sites report, and that sending the task again, or more with it, can heal.
OTHER_SITE = "other-site"  # the task was for another site than the one behind the node
CONSTANTS_LACK = "constants"  # the site cannot rebuild the adapter's constants, and has none
UNREADABLE = "unreadable"  # the reply was lost with another that could not be read; the site holds what it was sent
RESYNC = ("base-digest", "result-digest", "StateError", CONSTANTS_LACK, OTHER_SITE, UNREADABLE)
SILENT_OUTCOMES = ("deadline", "stale")  # outcomes of tasks that count as refusals, although there is no reply


class ReplyIntake:
    """Takes in the replies of one run.

    Args:
        config: of the run.
        template: of the adapter; its tensors are not needed.
        ledger: notes what came.
        transport: tells whether a node is still connected.
        participants: is told who has answered and who has failed.
        pending: knows who is awaited.
        dispatcher: sends tasks again.
        emit: takes events.
        updates: folder for the decoded updates of a round.

    Attributes:
        outliers: drops what was admitted and is too long.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        template: Template,
        ledger: Ledger,
        transport: Transport,
        participants: Participants,
        pending: PendingReplies,
        dispatcher: Dispatcher,
        emit: Emit,
        updates: Path,
    ) -> None:
        self._config = config
        self._layout = template.adapter.layout
        self._adapter_digest = adapter_digest(dict(template.adapter.config))
        self._ledger = ledger
        self._transport = transport
        self._participants = participants
        self._pending = pending
        self._dispatcher = dispatcher
        self._emit = emit
        self._updates = updates
        self._signatures = SignaturePolicy(config.state_path, config.require_signatures)
        self.outliers = Outliers(config, ledger, transport, participants, self.refuse_norm)

    def handle_reply(self, reply: Incoming, open_round: OpenRound) -> None:
        """Record a reply: it is late, or unexpected, or a reason to send again, or else admitted or refused."""
        received_at = self._pending.clock()
        if reply.late:
            self._record_late(reply, open_round)
            return
        pending = self._pending.take(reply.node)
        if pending is None:
            self.refuse(open_round.number, reply, "unasked", "a reply that nobody awaits")
            return
        self._participants.record_reply(reply.node)
        if reply.error and reply.node in self._transport.nodes():  # it was not the connection that was lost
            self._participants.record_failure(reply.node, open_round.number)
        if _can_resync(pending, reply, has_constants=self._dispatcher.has_constants):
            self._resync(pending, reply, open_round)
        else:
            self._take_answer(pending, reply, open_round, received_at)

    def refuse(self, round_: int, reply: Incoming, code: str, message: str, *, is_strike: bool = False) -> None:
        """Record that a reply is not taken, and why: in the ledger, as an event, and against the node.

        Args:
            round_: number of the round that it answers.
            reply: what came, or an empty reply of a node that was given up.
            code: the reason.
            message: text for people.
            is_strike: whether it counts against the node, which is left out after too many.
        """
        if is_strike:
            self._participants.record_refusal(reply.node, round_)
        site = claimed_site(reply)
        code = code[:MAX_CODE]
        message = message[:MAX_MESSAGE]
        self._ledger.record_refusal(round_, reply.node, site, code, message)
        self._emit(ReplyRefused(round=round_, site=site, code=code, message=message, digest=reply.digest))

    def give_up(self, replies: Sequence[PendingReply], outcome: str, open_round: OpenRound, *, round_: int) -> None:
        """Wait no longer for some replies; what the sites still send is not taken, and returns to their residuals.

        Args:
            replies: what is given up.
            outcome: why: ``deadline``, ``stale``, ``surplus`` or ``finished``.
            open_round: the round that is open.
            round_: number of the last round in which the replies were awaited.
        """
        self._pending.forget(replies)
        for pending in replies:
            self._participants.record_no_reply(pending.node, round_)
            self._ledger.close_task(pending.number, outcome)
            if outcome in SILENT_OUTCOMES:
                seconds = self._pending.clock() - pending.sent_at
                age = open_round.age(pending.version)
                message = f"no reply within {seconds:.0f} s, {age} versions later"
                self.refuse(pending.round, _empty_reply(pending.node, pending.site), outcome, message)

    def refuse_norm(self, open_round: OpenRound, update: AdmittedUpdate, message: str) -> None:
        """Record that an update which was admitted is not merged, because of its norm.

        Args:
            open_round: the round that it was admitted to.
            update: which is not merged.
            message: text for people.
        """
        reply = _empty_reply(update.node, update.site)
        self.refuse(open_round.number, reply, "norm", message, is_strike=True)

    def discard_updates(self) -> None:
        """Delete the decoded updates of a round that is over."""
        shutil.rmtree(self._updates, ignore_errors=True)

    def _record_late(self, reply: Incoming, open_round: OpenRound) -> None:
        self._participants.record_reply(reply.node, late=True)
        self._record_bytes(open_round.number, reply, "late")

    def _record_bytes(self, round_: int, reply: Incoming, kind: str) -> None:
        """Record the bytes of a reply, whatever becomes of it; a reply that Flower made itself has crossed nothing."""
        if reply.error:
            return
        self._ledger.record_message(
            round_=round_,
            node=reply.node,
            site=claimed_site(reply),
            direction="up",
            kind=kind if reply.payload else "failure",
            payload=len(reply.payload),
            digest=reply.digest,
            protocol=reply.protocol,
        )

    def _resync(self, pending: PendingReply, reply: Incoming, open_round: OpenRound) -> None:
        """Forget what the coordinator believed about the site where it was wrong, and send the task once more."""
        code = _failure_code(reply)
        self._record_bytes(pending.round, reply, "failure")
        self.refuse(pending.round, reply, code, str(reply.status.get("message", "")))
        self._ledger.close_task(pending.number, "resent")
        if code not in (CONSTANTS_LACK, UNREADABLE):
            self._ledger.forget(reply.node, is_other=code == OTHER_SITE)
        self._dispatcher.send(reply.node, open_round, with_constants=code == CONSTANTS_LACK, is_resent=True)

    def _take_answer(self, pending: PendingReply, reply: Incoming, open_round: OpenRound, received_at: float) -> None:
        """Check a reply and close its task; an update that passes joins those of the round."""
        self._record_bytes(pending.round, reply, open_round.reply_kind.name.lower())
        update = self._check_reply(pending, reply, open_round, received_at)
        if update is None:
            self._ledger.close_task(pending.number, "refused")
            return
        self._ledger.close_task(pending.number, "admitted", update.site)
        open_round.admitted.append(update)
        failpoint("server.admitted")

    def _check_reply(
        self, pending: PendingReply, reply: Incoming, open_round: OpenRound, received_at: float
    ) -> AdmittedUpdate | None:
        """Return the update of a reply; None if it was refused."""
        if reply.error:
            self.refuse(pending.round, reply, "node-lost", reply.error)
            return None
        if reply.status.get("status") != "ok":
            self._refuse_failure(pending, reply)
            return None
        sites = open_round.admitted_sites
        if open_round.steps and self._config.late == "merge":
            # This node was not told of updates merged since it was asked: its site may be behind another node, too.
            sites |= self._ledger.merged_since(pending.round)
        try:
            envelope, norm = admit_reply(
                reply.payload,
                self._expect(pending),
                open_round.reply_kind,
                sites,
                claimed=claimed_site(reply),
                keep=self._write_update,
            )
        except AdmissionError as error:
            is_elsewhere = error.code == "duplicate-site"
            if is_elsewhere:
                self._participants.record_other_node(reply.node, pending.round)
            self.refuse(pending.round, reply, error.code, str(error), is_strike=not is_elsewhere)
            return None
        self._record_admission(pending, reply, envelope, received_at=received_at, age=open_round.age(pending.version))
        return AdmittedUpdate(
            site=envelope.header.site,
            envelope=replace(envelope, sections=()),  # memory does not grow with the number of sites
            tensors=TensorFile(self._updates / envelope.digest.hex(), self._layout) if open_round.steps else {},
            node=reply.node,
            version=pending.version,
            norm=norm,
        )

    def _refuse_failure(self, pending: PendingReply, reply: Incoming) -> None:
        """Refuse a reply that reports a failure; a code that is the coordinator's own gets a prefix."""
        code = str(reply.status.get("code", "unknown"))
        if code in OWN_CODES:
            code = f"site-{code}"
        self.refuse(pending.round, reply, code, str(reply.status.get("message", "")), is_strike=True)

    def _record_admission(
        self, pending: PendingReply, reply: Incoming, envelope: Envelope, *, received_at: float, age: int
    ) -> None:
        """Record what an admitted reply tells of its site, and emit the event."""
        header = envelope.header
        round_ = pending.round
        if not self._ledger.base_fingerprint:
            self._ledger.base_fingerprint = header.base_fingerprint.hex()
        self._ledger.acknowledge(
            site=header.site,
            node=reply.node,
            acked=pending.version,  # the site holds it: the header's base digest is that of this version
            examples=header.examples,
            rate=pending.rate(len(reply.payload), header.metrics, received_at),
        )
        self._ledger.record_metrics(round_, header.site, dict(header.metrics))
        self._ledger.record_link_traffic(round_, reply.node, header.site, reply.status)
        self._emit(
            ReplyAdmitted(
                round=round_,
                site=header.site,
                late=age,
                bytes=len(reply.payload),
                digest=envelope.digest.hex(),
                signed=bool(envelope.signature),
                replayed=bool(reply.status.get("replayed")),
                metrics={name: round(value, 4) for name, value in header.metrics.items()},
            )
        )

    def _expect(self, pending: PendingReply) -> Expected:
        """Return what the header of a reply must say."""
        return Expected(
            run=self._config.run,
            round=pending.round,
            base_digest=pending.base_digest,
            layout=self._layout,
            adapter_digest=self._adapter_digest,
            base_fingerprint=bytes.fromhex(self._ledger.base_fingerprint),
            codec=self._config.codec,
            steps=self._config.steps,
            batch_size=self._config.batch_size,
            weighting=self._config.weigh_by,
            signatures=self._signatures,
        )

    def _write_update(self, name: str, parts: Iterable[Tensors]) -> None:
        """Write a decoded update, which comes part by part, to a file."""
        write_tensor_file(self._updates / name, parts)


def _failure_code(reply: Incoming) -> str:
    """Return the code of the failure that a reply reports; empty if it reports none."""
    return str(reply.status.get("code", ""))


def _can_resync(pending: PendingReply, reply: Incoming, *, has_constants: bool) -> bool:
    """Return whether the reply reports a failure that sending again can heal, and was not tried yet.

    A site may claim to lack constants that the run does not have: nothing can be sent for that.
    """
    code = _failure_code(reply)
    if code == CONSTANTS_LACK and not has_constants:
        return False
    return code in RESYNC and not pending.is_resent and not reply.error


def _empty_reply(node: int, site: str) -> Incoming:
    """Build the empty reply that stands for a node in a refusal by the coordinator."""
    return Incoming(node, {"site": site}, b"")


def claimed_site(reply: Incoming) -> str:
    """Return the site that a reply says to be from, which nobody has verified, cut to the length of a name."""
    return str(reply.status.get("site", ""))[:MAX_SITE]
