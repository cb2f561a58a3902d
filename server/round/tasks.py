"""The task of a round says what a site is asked to do."""

from __future__ import annotations

import json

from fedcompress.adapters import Template
from fedcompress.config.objective import objective_json
from fedcompress.config.run_config import RunConfig
from fedcompress.config.train_task import TrainTask
from server.ledger.recovery import restored_at


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
