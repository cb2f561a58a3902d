"""What a site is asked for, and who is awaited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedcompress.adapters import Template
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
    )
