"""Keep what a site reaches alone, the result of its local training, which it reports beside that of a run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "alone.json"  # in the site's state directory
METRIC = "alone_correct"  # of an update: right predictions of the baseline on the site's held-out rows


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Holds the held-out figures of a model that was trained on this site's rows alone.

    Args:
        adapter: digest of the template's adapter config, hex.
        base: fingerprint of the base model, hex.
        steps: optimizer steps that were made.
        correct: right predictions.
        predictions: all predictions.
        loss: mean loss of a prediction, in nats.
    """

    adapter: str
    base: str
    steps: int
    correct: float
    predictions: float
    loss: float

    @property
    def accuracy(self) -> float:
        """Return the share of predictions that are right."""
        return self.correct / max(1.0, self.predictions)

    def save(self, state_dir: Path) -> None:
        """Write it to a state directory, in place of the one before."""
        part = state_dir / f"{FILE}.part"
        part.write_text(json.dumps(asdict(self)))
        os.replace(part, state_dir / FILE)

    @classmethod
    def load(cls, state_dir: Path) -> Baseline | None:
        """Read that of a state directory; None if there is none that can be read."""
        try:
            return cls(**json.loads((state_dir / FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def metrics(self, *, adapter: str, base: str, evaluated: dict[str, Any]) -> dict[str, float]:
        """Return what is reported beside the figures of a round.

        Args:
            adapter: digest of the run's adapter config, hex.
            base: fingerprint of the base model, hex.
            evaluated: the metrics of the round.

        Returns:
            The right predictions; nothing where the run trains another adapter, or other rows are held out now.
        """
        is_same = (self.adapter, self.base, self.predictions) == (adapter, base, evaluated.get("eval_examples"))
        return {METRIC: self.correct} if is_same else {}
