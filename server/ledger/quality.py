"""The quality of a version is pooled from what the sites measured on their held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NEEDED = ("eval_correct", "eval_loss_sum")  # metrics that a report must have, besides ``eval_examples``


@dataclass(frozen=True)
class Quality:
    """Holds accuracy and mean loss over the predictions on the held-out rows of all sites that reported.

    A classifier predicts one label a row, a language model one token after another.

    Attributes:
        accuracy: share of predictions that are right.
        loss: mean loss of a prediction, in nats.
        examples: predictions that were made.
        exact: share of rows that are right from end to end; None where sites do not report it.
    """

    accuracy: float
    loss: float
    examples: int
    exact: float | None = None


def compute_baseline(metrics: Mapping[str, float]) -> float | None:
    """Return the accuracy that a site reaches alone on its held-out rows; None if it has not said, or not in range."""
    correct, count = metrics.get("alone_correct", -1.0), metrics.get("eval_examples", 0.0)
    return correct / count if 0 <= correct <= count and count else None


def pool_quality(metrics: Iterable[Mapping[str, float]]) -> Quality | None:
    """Pool what sites measured: sums over sites, divided by the sum of their predictions; None if nobody reported.

    A site that does not report all three numbers, or claims more right predictions than it made, is left out.
    """
    reports = [m for m in metrics if m.get("eval_examples", 0) > 0 and all(name in m for name in NEEDED)]
    reports = [m for m in reports if 0 <= m["eval_correct"] <= m["eval_examples"]]
    count = sum(m["eval_examples"] for m in reports)
    if not count:
        return None
    rows = sum(m.get("eval_rows", 0.0) for m in reports)
    return Quality(
        exact=sum(m.get("eval_exact", 0.0) for m in reports) / rows if rows else None,
        accuracy=sum(m["eval_correct"] for m in reports) / count,
        loss=sum(m["eval_loss_sum"] for m in reports) / count,
        examples=int(count),
    )
