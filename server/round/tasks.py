"""The task of a round says what a site is asked to do."""

from __future__ import annotations

from fedcompress.adapters import Template
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
    ended: str = "",
) -> TrainTask:
    """Build the task that one site gets in a round.

    Args:
        config: settings of the run; the task's ``deadline`` is their ``train_timeout``.
        template: what the run started from.
        round_: number of the round, from 1.
        version: of the published state to train from.
        steps: optimizer steps; 0 lets the site only evaluate.
        base_fingerprint: SHA-256 of the base's weights, hex; empty if it is not known yet.
        merged: hex digests of merged updates, the site's last one among them if it has one.
        refused: recent refusals of this site's updates, as ``round: code: message``.
        site: name of the site; empty if it is not known who is behind the node.
        ended: how the run has ended; empty while it goes on.

    Returns:
        The task.
    """
    return TrainTask.for_round(
        config,
        template,
        run=config.run,
        round_=round_,
        version=version,
        steps=steps,
        deadline=config.train_timeout,
        base_fingerprint=base_fingerprint,
        merged=merged,
        life=restored_at(config.state_path),
        site=site,
        refused=refused,
        ended=ended,
    )
