"""What a site is asked for, and who is awaited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from fedcompress.adapters import Template
from fedcompress.config.objective import objective_json
from fedcompress.config.run_config import RunConfig
from fedcompress.config.train_task import TrainTask
from server.ledger.recovery import restored_at


@dataclass
class PendingReply:
    """A node that is awaited.

    Attributes:
        node: whom.
        site: behind it, empty if it is not known.
        round: that it was asked for.
        version: that it trains from.
        base_digest: of that version.
        number: of its row in the ledger.
        at: when it was asked, on the coordinator's clock, s.
        sent: bytes of its downlink.
        resent: a failure that sending more can heal was met once.
    """

    node: int
    site: str
    round: int
    version: int
    base_digest: bytes
    number: int
    at: float
    sent: int
    resent: bool = False

    def rate(self, received: int, metrics: Mapping[str, float], now: float) -> float:
        """Bytes a second of the exchange, without the time that the site says it worked; 0 if it took none."""
        worked = metrics.get("seconds_train", 0.0) + metrics.get("seconds_evaluate", 0.0)
        seconds = now - self.at - worked
        return (self.sent + received) / seconds if seconds > 0 else 0.0


def build_task(
    config: RunConfig,
    template: Template,
    round_: int,
    version: int,
    *,
    steps: int,
    base_fingerprint: str,
    merged: tuple[str, ...],
    refused: tuple[str, ...],
    site: str = "",
) -> TrainTask:
    """The task of a round."""
    adapter = template.adapter
    return TrainTask(
        run=config.run,
        round=round_,
        version=version,
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
        objective=objective_json(template.objective),
        seed=config.seed,
        adapter_config=json.dumps(dict(adapter.config), sort_keys=True, separators=(",", ":")),
        layout=adapter.layout.to_json(),
        freeze=template.freeze,
        base_fingerprint=base_fingerprint,
        tokenizer=template.tokenizer,
        constants=template.constants,
        quantization=template.quantization,
        merged=merged,
        life=restored_at(config.state_path),
        site=site,
        refused=refused,
    )
