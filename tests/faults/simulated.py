"""Thousands of sites in one process: they share one state, and send recorded steps under their own names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedcompress.codecs import CodecSpec
from fedcompress.config import TrainTask
from fedcompress.pipeline import encode_update
from fedcompress.types import Layout, zeros
from fedcompress.wire import Header, Kind, Limits, digest_of, pack, split_bundle, unpack
from server.transport import Incoming
from tests.support import normal, update_header

RECORDED = 4  # different steps; each site sends one of them


class SimulatedSites:
    """A transport whose nodes answer at once; ``lost(node, round)`` says whose answer never comes."""

    def __init__(self, count: int, layout: Layout, adapter_digest: bytes, lost=lambda node, round_: False) -> None:
        self._layout, self._digest, self._lost = layout, adapter_digest, lost
        self._nodes = list(range(1, count + 1))
        self._reach: dict[bytes, bytes] = {}  # of the last bundle
        self._sections: dict[tuple[str, int], tuple[str, tuple[bytes, ...]]] = {}
        self._inbox: list[Incoming] = []
        self.now = 0.0

    def clock(self) -> float:
        """Seconds; they pass only while the coordinator waits."""
        return self.now

    def nodes(self) -> list[int]:
        return self._nodes

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> int:
        if self._lost(node, task.round):
            return 0
        base = self._reached(payload)
        header = Header(
            kind=Kind.UPDATE if task.steps else Kind.REPORT,
            run=task.run,
            site=f"site-{node}",
            round=task.round,
            version=task.version,
            codec="",
            base_digest=base,
            layout_digest=self._layout.digest,
            adapter_digest=self._digest,
            base_fingerprint=b"b" * 32,
            examples=10 + node % 7,
            metrics={"eval_correct": 1.0, "eval_examples": 2.0, "eval_loss_sum": 3.0},
        )
        sections: tuple[bytes, ...] = ()
        if task.steps:
            codec, sections = self._step(task.codec, node % RECORDED)
            header = replace(header, codec=codec)
        self._inbox.append(Incoming(node, {"status": "ok", "site": header.site}, pack(header, sections)))
        return 0

    def receive(self, timeout: float) -> Iterable[Incoming]:
        if not self._inbox:
            self.now += timeout
        inbox, self._inbox = self._inbox, []
        return inbox

    def forget(self, nodes: Iterable[int]) -> None:
        pass

    def _reached(self, bundle: bytes) -> bytes:
        """Digest of the state that a downlink leads to, as its last envelope says; real sites decode it."""
        key = digest_of(bundle)
        if key not in self._reach:
            limits = Limits.for_numel(self._layout.numel)
            last = unpack(split_bundle(bundle, limits)[-1], limits)
            self._reach = {key: last.header.result_digest}
        return self._reach[key]

    def _step(self, codec: str, number: int) -> tuple[str, tuple[bytes, ...]]:
        if (codec, number) not in self._sections:
            plain = update_header(self._layout, zeros(self._layout))
            step = normal(self._layout, number, 1e-3)
            payload, _ = encode_update(step, self._layout, CodecSpec.parse(codec), plain)
            envelope = unpack(payload, Limits.for_numel(self._layout.numel))
            self._sections[codec, number] = (envelope.header.codec, tuple(envelope.sections))
        return self._sections[codec, number]
