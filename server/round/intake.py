"""What becomes of a reply: it is counted, then admitted or refused; both are in the ledger and are said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcompress.adapters import adapter_digest
from fedcompress.config.run_config import RunConfig
from fedcompress.errors import AdmissionError
from fedcompress.storage.tensor_file import TensorFile, write_tensor_file
from fedcompress.types import Layout, Tensors
from fedcompress.wire import Kind, digest_of
from server.ledger.ledger import OWN_CODES, Ledger
from server.round.admission import Expected, admit_reply
from server.round.aggregation import AcceptedUpdate
from server.round.participants import Participants
from server.round.signatures import SignaturePolicy
from server.round.tasks import PendingReply
from server.transport.base import Incoming

MAX_SITE, MAX_CODE, MAX_MESSAGE = 64, 64, 2000  # characters that are kept of what a reply says


class ReplyIntake:
    """Takes the replies of one run.

    Args:
        config: of the run.
        layout: of the adapter.
        adapter_config: PEFT's, as the run was begun with.
        ledger: notes what came.
        roster: is told who failed.
        emit: is told everything.
        updates: folder for the decoded updates of a round.
    """

    def __init__(
        self,
        config: RunConfig,
        layout: Layout,
        adapter_config: Mapping[str, Any],
        ledger: Ledger,
        roster: Participants,
        emit: Callable[[dict[str, Any]], None],
        updates: Path,
    ) -> None:
        self._config, self._layout, self._ledger = config, layout, ledger
        self._roster, self._emit, self._updates = roster, emit, updates
        self._adapter_digest = adapter_digest(dict(adapter_config))
        self._trust = SignaturePolicy(config.state_path, config.require_signatures)

    def record_bytes(self, round_: int, reply: Incoming, kind: str) -> None:
        """Note the bytes of a reply, whatever becomes of it; one that Flower made itself has crossed nothing."""
        if not reply.error:
            size, name = len(reply.payload), digest_of(reply.payload).hex() if reply.payload else ""
            kind = kind if size else "failure"
            self._ledger.record_message(round_, reply.node, claimed_site(reply), "up", kind, size, name, reply.protocol)

    def admit(
        self, asked: PendingReply, reply: Incoming, seen: set[str], steps: int, age: int, now: float
    ) -> AcceptedUpdate | None:
        """The update of a reply, or None with the reason in the ledger.

        Args:
            asked: what it answers.
            reply: what came.
            seen: sites that have answered.
            steps: 0 if a report was asked for.
            age: versions that were published since the one it was trained from.
            now: on the coordinator's clock, s.
        """
        status, kind = reply.status, Kind.UPDATE if steps else Kind.REPORT
        self.record_bytes(asked.round, reply, kind.name.lower())
        if reply.error:
            self.refuse(asked.round, reply, "node-lost", reply.error)
            return None
        if status.get("status") != "ok":
            self._roster.record_refusal(reply.node, asked.round)
            code = str(status.get("code", "unknown"))
            code = f"site-{code}" if code in OWN_CODES else code  # what a reply says is no reason of the coordinator's
            self.refuse(asked.round, reply, code, str(status.get("message", "")))
            return None
        if steps and self._config.late == "merge":
            seen = seen | self._ledger.merged_since(asked.round)  # it was not told of these: behind another node
        try:
            envelope, norm = admit_reply(
                reply.payload, self._expected(asked), kind, seen, claimed_site(reply), self._keep
            )
        except AdmissionError as error:
            if error.code == "duplicate-site":
                self._roster.record_other_node(reply.node, asked.round)
            else:
                self._roster.record_refusal(reply.node, asked.round)
            self.refuse(asked.round, reply, error.code, str(error))
            return None
        header = envelope.header
        if not self._ledger.base_fingerprint:
            self._ledger.base_fingerprint = header.base_fingerprint.hex()
        rate = asked.rate(len(reply.payload), header.metrics, now)
        # the base's digest was compared: the site holds that version
        self._ledger.acknowledge(header.site, reply.node, asked.version, header.examples, rate)
        self._ledger.record_metrics(asked.round, header.site, dict(header.metrics))
        self._ledger.record_wire(asked.round, reply.node, header.site, status)
        about = {"round": asked.round, "site": header.site, "late": age}
        sent = {"bytes": len(reply.payload), "digest": envelope.digest.hex(), "signed": bool(envelope.signature)}
        metrics = {k: round(v, 4) for k, v in header.metrics.items()}
        self._emit({"event": "reply", **about, **sent, "replayed": bool(status.get("replayed")), "metrics": metrics})
        bare = replace(envelope, sections=())  # memory does not grow with the number of sites
        tensors = TensorFile(self._updates / envelope.digest.hex(), self._layout) if steps else {}
        return AcceptedUpdate(header.site, bare, tensors, reply.node, asked.version, norm)

    def _expected(self, asked: PendingReply) -> Expected:
        return Expected(
            run=self._config.run,
            round=asked.round,
            base_digest=asked.base_digest,
            layout=self._layout,
            adapter_digest=self._adapter_digest,
            base_fingerprint=bytes.fromhex(self._ledger.base_fingerprint),
            codec=self._config.codec,
            weighting=self._config.weigh_by,
            trust=self._trust,
        )

    def _keep(self, name: str, parts: Iterable[Tensors]) -> None:
        """Write an update that comes part by part."""
        write_tensor_file(self._updates / name, parts)

    def refuse(self, round_: int, reply: Incoming, code: str, message: str) -> None:
        """Note a reply that is not taken, and why."""
        site, code, message = claimed_site(reply), code[:MAX_CODE], message[:MAX_MESSAGE]
        self._ledger.record_refusal(round_, reply.node, site, code, message)
        digest = digest_of(reply.payload).hex() if reply.payload else ""
        facts = {"site": site, "code": code, "message": message, "digest": digest}
        self._emit({"event": "refused", "round": round_, **facts})


def claimed_site(reply: Incoming) -> str:
    """Who it says to be from, cut to what a name may have: nobody has verified it."""
    return str(reply.status.get("site", ""))[:MAX_SITE]
