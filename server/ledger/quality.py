"""Pooling what the sites measured on their held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Quality:
    """Accuracy and mean loss over what is predicted of the held-out rows of all sites that reported.

    A language model predicts tokens; ``exact`` is its share of rows that are right from end to end.
    """

    accuracy: float
    loss: float
    examples: int
    exact: float | None = None

    @property
    def facts(self) -> dict[str, float]:
        """What of it there is."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def pool_quality(metrics: Iterable[Mapping[str, float]]) -> Quality | None:
    """Pooled quality: sums of sites over the sum of their rows; None if nobody reported.

    A site that does not report all three numbers, or more that is right than there is, is left out.
    """
    needed = ("eval_correct", "eval_loss_sum")
    rows = [m for m in metrics if m.get("eval_examples", 0) > 0 and all(name in m for name in needed)]
    rows = [m for m in rows if 0 <= m["eval_correct"] <= m["eval_examples"]]
    count = sum(m["eval_examples"] for m in rows)
    if not count:
        return None
    whole = sum(m.get("eval_rows", 0.0) for m in rows)
    return Quality(
        exact=sum(m.get("eval_exact", 0.0) for m in rows) / whole if whole else None,
        accuracy=sum(m["eval_correct"] for m in rows) / count,
        loss=sum(m["eval_loss_sum"] for m in rows) / count,
        examples=int(count),
    )
