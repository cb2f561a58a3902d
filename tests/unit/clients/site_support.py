"""A site whose training is a stand-in: seeded random deltas. Everything durable is real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clients.identity import SiteIdentity
from clients.worker.session import Session
from fedcompress.codecs import CodecSpec, Feedback
from fedcompress.config import TrainTask
from fedcompress.failpoints import reach
from fedcompress.pipeline import encode_update
from fedcompress.types import Layout, Tensors, add, zeros
from fedcompress.wire import Header, Kind, pack
from tests.support import normal


class FakeSite:
    """Answers tasks like a worker's round runner does, without a model."""

    def __init__(self, folder: Path, name: str, adapter_digest: bytes = b"a" * 32) -> None:
        self.name = name
        self.folder = folder / name
        self.adapter_digest = adapter_digest
        self.trained = 0
        self.deltas: Tensors = {}
        self.identity = SiteIdentity()
        self.refused: list[str] = []  # what the coordinator said of replies
        self.session = Session(self.folder)

    def reopen(self) -> None:
        """Restart: nothing but the disk survives."""
        self.session.close()
        self.session = Session(self.folder)

    def answer(self, task: TrainTask, bundle: bytes, signature: str = "") -> bytes:
        """The reply's payload."""
        self.identity.check(signature, task.to_json(), bundle)
        if self.identity.coordinator is not None:
            self.session.advance(task.run, task.round, task.version, task.life)
        self.refused += task.refused
        layout = Layout.from_json(task.layout)
        held = self.session.receive(task.run, layout, bundle)
        self.session.settle(task.run, task.round, held.digest, task.merged, is_named=bool(task.site))
        reach("site.settled")
        stored = self.session.replay(task.run, task.round, held.digest) if task.steps else None
        if stored is not None:
            return self.identity.sign(stored)
        header = Header(
            kind=Kind.REPORT,
            run=task.run,
            site=self.name,
            round=task.round,
            version=held.version,
            codec="",
            base_digest=held.digest,
            layout_digest=layout.digest,
            adapter_digest=self.adapter_digest,
            base_fingerprint=b"b" * 32,
            examples=10 + len(self.name),
            metrics={"eval_correct": 1.0, "eval_examples": 2.0, "eval_loss_sum": 3.0},
        )
        if not task.steps:
            return self.identity.sign(pack(header, ()))
        self.trained += 1
        delta = normal(layout, sum(self.name.encode()) + 1000 * task.round, 0.1)
        reach("site.trained")
        self.deltas = add(self.deltas or zeros(layout), delta)
        held = self.session.held(task.run)
        assert held is not None
        feedback = Feedback(decay=task.feedback)
        target = feedback.target(delta, held.residual)
        header = replace(header, kind=Kind.UPDATE)
        payload, decoded = encode_update(target, layout, CodecSpec.parse(task.codec), header)
        payload = self.identity.sign(payload)
        self.session.commit(task.run, task.round, held.digest, payload, feedback.residual(target, decoded))
        return payload
