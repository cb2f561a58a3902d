"""The quality of a version is pooled from what the sites measured on their held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedcompress.merging.weighting import CAP, limit_weights

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

    A site with far more rows than most counts less than by its rows, since they are its claim (``limit_weights``): no
    site sets the figure alone. A site that does not report all three numbers, or claims more right predictions than it
    made, is left out.
    """
    reports = [m for m in metrics if m.get("eval_examples", 0) > 0 and all(name in m for name in NEEDED)]
    reports = [m for m in reports if 0 <= m["eval_correct"] <= m["eval_examples"]]
    if not reports:
        return None
    whole = [m for m in reports if m.get("eval_rows", 0.0) > 0]
    return Quality(
        exact=_pool(whole, "eval_exact", "eval_rows") if whole else None,
        accuracy=_pool(reports, "eval_correct", "eval_examples"),
        loss=_pool(reports, "eval_loss_sum", "eval_examples"),
        examples=int(sum(m["eval_examples"] for m in reports)),
    )


def _pool(reports: Sequence[Mapping[str, float]], part: str, whole: str) -> float:
    """Return the mean share, in which a site counts by its claim within the limits of ``limit_weights``."""
    claims = [m[whole] for m in reports]
    limited = limit_weights(claims, CAP)
    if limited == claims:
        return sum(m.get(part, 0.0) for m in reports) / sum(claims)
    return sum(w * m.get(part, 0.0) / m[whole] for w, m in zip(limited, reports, strict=True)) / sum(limited)
