"""What becomes of a reply: it is counted, then admitted or refused; both are in the ledger and are said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcompress.adapters import adapter_digest
from fedcompress.config.run_config import RunConfig
from fedcompress.errors import AdmissionError
from fedcompress.storage.tensor_file import Stored, store
from fedcompress.types import Layout, Tensors
from fedcompress.wire import Kind, digest_of
from server.ledger.ledger import OWN, Ledger
from server.round.admission import Expected, admit
from server.round.aggregation import Admitted
from server.round.participants import Roster
from server.round.signatures import Trust
from server.round.tasks import Asked
from server.transport.base import Incoming

MOST_SITE, MOST_CODE, MOST_MESSAGE = 64, 64, 2000  # characters that are kept of what a reply says


class Reception:
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
        roster: Roster,
        emit: Callable[[dict[str, Any]], None],
        updates: Path,
    ) -> None:
        self._config, self._layout, self._ledger = config, layout, ledger
        self._roster, self._emit, self._updates = roster, emit, updates
        self._adapter_digest = adapter_digest(dict(adapter_config))
        self._trust = Trust(config.state_path, config.require_signatures)

    def count(self, round_: int, reply: Incoming, kind: str) -> None:
        """Note the bytes of a reply, whatever becomes of it; one that Flower made itself has crossed nothing."""
        if not reply.error:
            size, name = len(reply.payload), digest_of(reply.payload).hex() if reply.payload else ""
            kind = kind if size else "failure"
            self._ledger.record_message(round_, reply.node, site_of(reply), "up", kind, size, name, reply.protocol)

    def admit(self, asked: Asked, reply: Incoming, seen: set[str], steps: int, age: int, now: float) -> Admitted | None:
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
        self.count(asked.round, reply, kind.name.lower())
        if reply.error:
            self.refuse(asked.round, reply, "node-lost", reply.error)
            return None
        if status.get("status") != "ok":
            self._roster.strike(reply.node, asked.round)
            code = str(status.get("code", "unknown"))
            code = f"site-{code}" if code in OWN else code  # what a reply says is no reason of the coordinator's
            self.refuse(asked.round, reply, code, str(status.get("message", "")))
            return None
        if steps and self._config.late == "merge":
            seen = seen | self._ledger.merged_since(asked.round)  # it was not told of these: behind another node
        try:
            envelope, norm = admit(reply.payload, self._expected(asked), kind, seen, site_of(reply), self._keep)
        except AdmissionError as error:
            if error.code == "duplicate-site":
                self._roster.answers_twice(reply.node, asked.round)
            else:
                self._roster.strike(reply.node, asked.round)
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
        tensors = Stored(self._updates / envelope.digest.hex(), self._layout) if steps else {}
        return Admitted(header.site, bare, tensors, reply.node, asked.version, norm)

    def _expected(self, asked: Asked) -> Expected:
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
        store(self._updates / name, parts)

    def refuse(self, round_: int, reply: Incoming, code: str, message: str) -> None:
        """Note a reply that is not taken, and why."""
        site, code, message = site_of(reply), code[:MOST_CODE], message[:MOST_MESSAGE]
        self._ledger.record_refusal(round_, reply.node, site, code, message)
        digest = digest_of(reply.payload).hex() if reply.payload else ""
        facts = {"site": site, "code": code, "message": message, "digest": digest}
        self._emit({"event": "refused", "round": round_, **facts})


def site_of(reply: Incoming) -> str:
    """Who it says to be from, cut to what a name may have: nobody has verified it."""
    return str(reply.status.get("site", ""))[:MOST_SITE]
