"""Thousands of sites in one process: they share one state, and send recorded steps under their own names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fedcompress.codecs import CodecSpec
from fedcompress.config.train_task import TrainTask
from fedcompress.pipeline.updates import encode_update
from fedcompress.types import Layout, zeros
from fedcompress.wire import Header, Kind, Limits, digest_of, pack, split_bundle, unpack
from server.transport.base import Incoming
from tests.support import normal, update_header

RECORDED = 4  # different steps; each site sends one of them


class SimulatedSites:
    """A transport whose nodes answer at once; ``lost(node, round)`` says whose answer never comes."""

    def __init__(
        self, count: int, layout: Layout, adapter_digest: bytes, steps: Path, lost=lambda node, round_: False
    ) -> None:
        self._layout, self._digest, self._steps, self._lost = layout, adapter_digest, steps, lost
        self._limits = Limits.for_numel(layout.numel)
        self._nodes = list(range(1, count + 1))
        self._reach: dict[bytes, bytes] = {}  # of the last bundle
        self._inbox: list[Incoming] = []
        self.now = 0.0

    def clock(self) -> float:
        """Seconds; they pass only while the coordinator waits."""
        return self.now

    def nodes(self) -> list[int]:
        return self._nodes

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> int:
        if not self._lost(node, task.round):
            reply = self.answer(f"site-{node}", node, task, payload)
            self._inbox.append(Incoming(node, {"status": "ok", "site": f"site-{node}"}, reply))
        return 0

    def answer(self, site: str, number: int, task: TrainTask, payload: bytes) -> bytes:
        """What a site of this name and number replies to a task."""
        if task.ended:
            return b""
        base = self._reached(payload)
        header = Header(
            kind=Kind.UPDATE if task.steps else Kind.REPORT,
            run=task.run,
            site=site,
            round=task.round,
            version=task.version,
            codec="",
            base_digest=base,
            layout_digest=self._layout.digest,
            adapter_digest=self._digest,
            base_fingerprint=b"b" * 32,
            examples=10 + number % 7,
            metrics={"eval_correct": 1.0, "eval_examples": 2.0, "eval_loss_sum": 3.0},
        )
        sections: tuple[bytes, ...] = ()
        if task.steps:
            recorded = unpack((self._steps / str(number % RECORDED)).read_bytes(), self._limits)
            sections, header = recorded.sections, replace(header, codec=recorded.header.codec)
        return pack(header, sections)

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
            last = unpack(split_bundle(bundle, self._limits)[-1], self._limits)
            self._reach = {key: last.header.result_digest}
        return self._reach[key]


def record_steps(folder: Path, layout: Layout, codec: str) -> None:
    """Encode what sites will send, so that it need not be in the coordinator's process."""
    folder.mkdir()
    header = update_header(layout, zeros(layout))
    for number in range(RECORDED):
        payload, _ = encode_update(normal(layout, number, 1e-3), layout, CodecSpec.parse(codec), header)
        (folder / str(number)).write_bytes(payload)
