"""The round loop, to be read from top to bottom.

A round: send the published state and a task to each chosen site; collect replies until all
are there or the deadline; admit or refuse each; merge; step; compress; commit.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from fedcompress.adapters import adapter_digest, load_template, seeded_init
from fedcompress.adapters.export import export_adapter
from fedcompress.adapters.template import CONSTANTS, START, load_constants
from fedcompress.config import RunConfig, TrainTask
from fedcompress.errors import AdmissionError, TrainingError
from fedcompress.identity.tasks import sign_task
from fedcompress.merging import Spool
from fedcompress.objective import objective_json
from fedcompress.pipeline import encode_constants, encode_snapshot
from fedcompress.types import state_digest, zeros
from fedcompress.wire import Kind, digest_of
from server.admission import Expected, admit
from server.evaluate import Quality, pool
from server.ledger import Ledger, Published
from server.publish import Downlinks
from server.sampling import choose
from server.strategy import Admitted, next_version
from server.trust import Trust, own_key

RESYNC = ("base-digest", "result-digest", "StateError", "constants", "other-site")  # sending more can heal these
MAX_TOLD = 500  # characters of a reason


@dataclass(frozen=True)
class Incoming:
    """One reply: the site's flat status and its payload; ``error`` if Flower lost the node."""

    node: int
    status: dict[str, Any]
    payload: bytes
    error: str = ""


class Transport(Protocol):
    """What the coordinator needs of Flower."""

    def nodes(self) -> list[int]:
        """Ids of the connected nodes."""
        ...

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> None:
        """Send a task with its downlink, and the signature of both if there is one."""
        ...

    def receive(self, timeout: float) -> Iterable[Incoming]:
        """Replies that have come; waits at most ``timeout`` seconds for one."""
        ...

    def forget(self) -> None:
        """Drop what was sent and not answered."""
        ...


class Coordinator:
    """One run of a federation."""

    def __init__(
        self,
        config: RunConfig,
        transport: Transport,
        emit: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._transport = transport
        self._emit = emit
        self._clock = clock
        folder = Path(config.initial_adapter)
        self._template = template = load_template(folder)
        self._constants = (folder / CONSTANTS).read_bytes() if template.constants else b""
        self.layout = template.adapter.layout
        self._adapter_config = dict(template.adapter.config)
        self._key = own_key(config.state_path, required=config.require_signatures)
        self._trust = Trust(config.state_path, config.require_signatures)
        self._told: dict[int, str] = {}  # node: why its last reply was refused, for its next task
        self.ledger = Ledger(config.state_path, config.run)
        fingerprint = config.base_fingerprint or template.base_fingerprint
        self.ledger.begin(self.layout, json.dumps(self._adapter_config, sort_keys=True), fingerprint)
        self._updates = config.state_path / "updates" / config.run  # decoded ones of the open round
        published = self.ledger.published(self.layout)
        self._published = published or self._publish_start(template.adapter.tensors)

    @cached_property
    def _constants_are_needed(self) -> bool:
        """Whether no site can rebuild them: a new site is sent them at once, others when they ask."""
        return bool(self._constants) and any(name.endswith(START) for name in load_constants(self._constants))

    def _publish_start(self, tensors: dict[str, Any]) -> Published:
        """Commit version 0: the initial adapter, sent as its seed if the seed rebuilds it."""
        config, digest = self._config, state_digest(self.layout, tensors)
        is_seeded = state_digest(self.layout, seeded_init(self.layout, config.seed)) == digest
        seed = config.seed if is_seeded else None
        envelope = encode_snapshot(tensors, self.layout, run=config.run, version=0, init_seed=seed)
        start = Published(0, digest, dict(tensors), zeros(self.layout))
        with self.ledger.transaction():
            self.ledger.publish(0, digest, envelope, start.state, start.residual)
        return start

    def run(self) -> Path:
        """All rounds that are not done yet, a last evaluation, and the export.

        Returns:
            The exported PEFT folder.

        Raises:
            TrainingError: no site came, or none could train.
        """
        first = self.ledger.rounds_done + 1
        for message in self._config.warnings:
            self._emit({"event": "warning", "message": message})
        facts = {"parameters": self.layout.numel, "require_signatures": self._config.require_signatures}
        at = {"version": self._published.version, "digest": self._published.digest.hex()}
        self._emit({"event": "start", "first_round": first, "rounds": self._config.rounds, **facts, **at})
        for round_ in range(first, self._config.rounds + 1):
            self._round(round_)
        self._ask(self._config.rounds + 1, steps=0)
        folder = self.export(self._config.state_path / "adapter")
        self._emit({"event": "finished", "adapter": str(folder), **self._totals()})
        return folder

    def _round(self, round_: int) -> None:
        started = self._clock()
        asked, admitted = self._ask(round_, steps=self._config.steps)
        if len(admitted) < self._config.quorum:
            raise TrainingError(
                "no-quorum", f"round {round_}: {len(admitted)} updates admitted: the quorum is {self._config.quorum}"
            )
        published, envelope = next_version(self._config, self.layout, self._published, admitted, round_)
        seconds = self._clock() - started
        merged = [(a.site, a.envelope.digest.hex()) for a in admitted]
        with self.ledger.transaction():
            self.ledger.publish(
                published.version, published.digest, envelope, published.state, published.residual, published.outer
            )
            self.ledger.end_round(round_, published.version, asked, merged, seconds)
        self.ledger.collect_garbage()
        shutil.rmtree(self._updates, ignore_errors=True)
        self._published = published
        up, _ = self.ledger.payload_bytes("up", round_)
        down, _ = self.ledger.payload_bytes("down", round_)
        self._emit(
            {
                "event": "round",
                "round": round_,
                "version": published.version,
                "digest": published.digest.hex(),
                "updates": [f"{site}:{digest}" for site, digest in merged],
                "asked": asked,
                "merged": len(merged),
                "uplink_bytes": up,
                "downlink_bytes": down,
                "seconds": round(seconds, 3),
            }
        )

    def _ask(self, round_: int, *, steps: int) -> tuple[int, list[Admitted]]:
        """Send a round, collect and admit the replies; emits the quality of the published state."""
        shutil.rmtree(self._updates, ignore_errors=True)  # of a run that was killed
        nodes = choose(self._wait_for_nodes(), self._config.sites_per_round, self._config.seed, round_)
        downlinks = Downlinks(self.ledger, self.layout, self._published, self._key)
        for node in nodes:
            self._send(node, round_, steps, downlinks)
        at = {"version": self._published.version, "until_seconds": self._config.round_timeout}
        self._emit({"event": "asked", "round": round_, "sites": len(nodes), **at})
        admitted: list[Admitted] = []
        waiting, resent = set(nodes), set()
        deadline = self._clock() + self._config.round_timeout
        while waiting and (left := deadline - self._clock()) > 0:
            for reply in self._transport.receive(min(left, 1.0)):
                if reply.status.get("code") in RESYNC and reply.node not in resent:
                    resent.add(reply.node)
                    self._refuse(round_, reply, reply.status["code"], str(reply.status.get("message", "")))
                    lacks = reply.status["code"] == "constants"
                    if not lacks:
                        self.ledger.forget(reply.node)
                    self._send(reply.node, round_, steps, downlinks, constants=lacks)
                    continue
                waiting.discard(reply.node)
                update = self._admit(round_, reply, {a.site for a in admitted}, steps)
                if update is not None:
                    admitted.append(update)
        if waiting:
            self._transport.forget()
            for node in waiting:
                silent = Incoming(node, {}, b"")
                self._refuse(round_, silent, "deadline", f"no reply within {self._config.round_timeout:.0f} s")
        by_site = sorted(admitted, key=lambda a: a.site)  # float sums must not depend on arrival
        self._emit_quality(pool(a.envelope.header.metrics for a in by_site))
        return len(nodes), admitted

    def _wait_for_nodes(self) -> list[int]:
        """Nodes, once at least ``min_sites`` are connected; says who is awaited until when."""
        deadline, said = self._clock() + self._config.join_timeout, -1
        while True:
            nodes = self._transport.nodes()
            if len(nodes) >= self._config.min_sites:
                return nodes
            if self._clock() > deadline:
                raise TrainingError(
                    "no-sites",
                    f"min-sites: {len(nodes)} connected: {self._config.min_sites} needed "
                    f"within join-timeout, {self._config.join_timeout:.0f} s",
                )
            if len(nodes) != said:
                said = len(nodes)
                self._emit({"event": "waiting", "sites": said, "needed": self._config.min_sites})
            for _ in self._transport.receive(0.2):
                pass

    def _send(self, node: int, round_: int, steps: int, downlinks: Downlinks, *, constants: bool = False) -> None:
        rows = self.ledger.sites()
        known = next((r for r in rows if r.node == node), None)
        site = known.site if known is not None else ""
        merged = [known.merged] if known is not None else [r.merged for r in rows]
        config = self._config
        task = TrainTask(
            run=config.run,
            round=round_,
            version=self._published.version,
            steps=steps,
            batch_size=config.batch_size,
            lr=config.lr,
            optimizer=config.optimizer,
            codec=config.codec,
            feedback=config.feedback,
            feedback_warmup=config.feedback_warmup,
            feedback_reset=config.feedback_reset,
            residual_store=config.residual_store,
            optimizer_state=config.optimizer_state,
            schedule=config.schedule,
            rounds=config.rounds,
            clip=config.clip,
            correction=config.correction,
            deadline=config.train_timeout,
            max_length=config.max_length,
            objective=objective_json(self._template.objective),
            seed=config.seed,
            adapter_config=json.dumps(self._adapter_config, sort_keys=True, separators=(",", ":")),
            layout=self.layout.to_json(),
            freeze=self._template.freeze,
            base_fingerprint=self.ledger.base_fingerprint,
            tokenizer=self._template.tokenizer,
            constants=self._template.constants,
            quantization=self._template.quantization,
            merged=tuple(m for m in merged if m),
            site=site,
            refused=self._told.get(node, ""),
        )
        payload = downlinks.bundle(known.acked if known is not None else None)
        if constants or (known is None and self._constants_are_needed):
            sent = encode_constants(self._constants, self._template.constants, run=config.run)
            payload = downlinks.signed(sent) + payload
        signature = sign_task(self._key, task.to_json(), payload) if self._key is not None else ""
        self._transport.send(node, task, payload, signature)
        self.ledger.record_message(round_, node, site, "down", "state", len(payload), sha256(payload).hexdigest())

    def _admit(self, round_: int, reply: Incoming, seen: set[str], steps: int) -> Admitted | None:
        """The update of a reply, or None with the reason in the ledger."""
        status, site = reply.status, str(reply.status.get("site", ""))
        if reply.payload:
            kind = "update" if steps else "report"
            digest = digest_of(reply.payload).hex()
            self.ledger.record_message(round_, reply.node, site, "up", kind, len(reply.payload), digest)
        if reply.error or status.get("status") != "ok":
            code = "node-lost" if reply.error else str(status.get("code", "unknown"))
            self._refuse(round_, reply, code, reply.error or str(status.get("message", "")))
            return None
        expected = Expected(
            run=self._config.run,
            round=round_,
            base_digest=self._published.digest,
            layout=self.layout,
            adapter_digest=adapter_digest(self._adapter_config),
            base_fingerprint=bytes.fromhex(self.ledger.base_fingerprint),
            codec=self._config.codec,
            weighting=self._config.weigh_by,
            trust=self._trust,
        )
        try:
            envelope, tensors = admit(reply.payload, expected, Kind.UPDATE if steps else Kind.REPORT, seen, site)
        except AdmissionError as error:
            self._told[reply.node] = f"round {round_}: {error.code}: {error}"[:MAX_TOLD]
            self._refuse(round_, reply, error.code, str(error))
            return None
        self._told.pop(reply.node, None)
        header = envelope.header
        if not self.ledger.base_fingerprint:
            self.ledger.base_fingerprint = header.base_fingerprint.hex()
        self.ledger.acknowledge(header.site, reply.node, self._published.version)  # its digest was compared
        self.ledger.record_metrics(round_, header.site, dict(header.metrics))
        self._emit(
            {
                "event": "reply",
                "round": round_,
                "site": header.site,
                "bytes": len(reply.payload),
                "digest": envelope.digest.hex(),
                "signed": bool(envelope.signature),
                "replayed": bool(status.get("replayed")),
                "metrics": {k: round(v, 4) for k, v in header.metrics.items()},
            }
        )
        if steps:  # on the disk, so that memory does not grow with the number of sites
            spool = Spool(self._updates, self.layout, ())
            spool.add(envelope.digest.hex(), tensors)
            tensors = spool.mapped(envelope.digest.hex())
        return Admitted(header.site, envelope, tensors)

    def _refuse(self, round_: int, reply: Incoming, code: str, message: str) -> None:
        site, code, message = (
            str(reply.status.get("site", ""))[:64],
            code[:64],
            message[:2000],
        )  # anybody may write them
        self.ledger.record_refusal(round_, reply.node, site, code, message)
        digest = digest_of(reply.payload).hex() if reply.payload else ""
        facts = {"site": site, "code": code, "message": message, "digest": digest}
        self._emit({"event": "refused", "round": round_, **facts})

    def _emit_quality(self, quality: Quality | None) -> None:
        if quality is not None:
            fields = {"accuracy": quality.accuracy, "loss": quality.loss, "examples": quality.examples}
            fields |= {"exact": quality.exact} if quality.exact is not None else {}
            self._emit({"event": "quality", "version": self._published.version, **fields})

    def _totals(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for direction in ("up", "down"):
            payload, messages = self.ledger.payload_bytes(direction)
            out[direction] = {"payload_bytes": payload, "messages": messages}
        return out

    def export(self, folder: Path) -> Path:
        """Write the published state as a stock PEFT folder."""
        constants = load_constants(self._constants) if self._constants else {}
        export_adapter(folder, self._template, self._published.state, constants)
        return folder
