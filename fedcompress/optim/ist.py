"""IST: which layers to train, from how the loss takes it when others are suppressed.

Yao et al. 2024 (arXiv:2410.11772, algorithm 1), with the released code's defaults. It is a
controller beside any optimizer: before a step, ``optimizer.active_layers = draw(...)``; every ``update_gap`` steps,
``candidates(...)`` are evaluated on one batch inside ``suppressed`` and their losses rewarded.
The released code draws with torch's global generator; here all is drawn from seed and step, and
candidates may be equal, where the code draws again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.optim.base import check_positive, check_share, derive_seed
from fedcompress.optim.engine.parameter_roles import layer_of


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Scores of the layers and how they are used.

    A score is high where suppression harms little: the less important a layer, the higher.

    Args:
        scores: by layer; 0 at first.
        trained: share of the layers that a step trains.
        suppressed: share of the layers in a candidate.
        candidates: sets that are tried at an update.
        update_gap: steps between updates of the scores.
        lr: of the scores.
    """

    scores: tuple[float, ...]
    trained: float = 0.25
    suppressed: float = 0.5
    candidates: int = 3
    update_gap: int = 10
    lr: float = 10.0

    def __post_init__(self) -> None:
        if not self.scores:
            raise ConfigError("ist.scores", "()", "needs a model whose names number its layers")
        check_share("ist.trained", self.trained)
        check_share("ist.suppressed", self.suppressed)
        for name in ("candidates", "update_gap", "lr"):
            check_positive(f"ist.{name}", getattr(self, name))


def draw(state: Importance, step: int, seed: int) -> set[int]:
    """Layers to train in a step, important ones more often: by ``sigmoid(-score)``, without replacement."""
    chances = [1 - _sigmoid(score) for score in state.scores]
    return _drawn(chances, state.trained, derive_seed(seed, "ist", step))


def candidates(state: Importance, step: int, seed: int) -> list[set[int]]:
    """Sets of layers to suppress, unimportant ones more often: by ``sigmoid(score)``; none if no update is due."""
    if step % state.update_gap or not step:
        return []
    chances = [_sigmoid(score) for score in state.scores]
    return [_drawn(chances, state.suppressed, derive_seed(seed, "ist", step, i)) for i in range(state.candidates)]


def reward(state: Importance, sets: Sequence[Iterable[int]], losses: Sequence[float]) -> Importance:
    """Scores after an update: layers whose suppression kept the loss low rise, others fall.

    ``score += lr * (exp(-loss) - mean) * p (1 - p)`` for each layer of each set, p being the sigmoid of the
    score before.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    if not all(map(math.isfinite, losses)):
        raise NonFiniteError(f"ist: losses {list(losses)}: must be finite")
    rewards = [math.exp(-loss) for loss in losses]
    mean = sum(rewards) / max(1, len(rewards))
    scores = list(state.scores)
    for layers, gained in zip(sets, rewards, strict=True):
        for layer in layers:
            chance = _sigmoid(state.scores[layer])
            scores[layer] += state.lr * (gained - mean) * chance * (1 - chance)
    return replace(state, scores=tuple(scores))


@contextmanager
def suppressed(model: Any, layers: Iterable[int], factor: float = 0.25) -> Iterator[None]:
    """Adapters of some layers answer with a share of their strength inside.

    Args:
        model: with peft's adapters, whose modules have a ``scaling`` by adapter.
        layers: by number.
        factor: the share.

    Raises:
        ConfigError: no adapter is in a layer.
    """
    found = [(layer_of(name), m) for name, m in model.named_modules() if isinstance(getattr(m, "scaling", None), dict)]
    if not any(layer >= 0 for layer, _ in found):
        raise ConfigError("ist.model", type(model).__name__, "must have adapters with a scaling in its layers")
    chosen = set(layers)
    before = [(module, dict(module.scaling)) for layer, module in found if layer in chosen]
    for module, scaling in before:
        module.scaling.update({name: factor * value for name, value in scaling.items()})
    try:
        yield
    finally:
        for module, scaling in before:
            module.scaling.update(scaling)


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0


def _drawn(chances: Sequence[float], share: float, seed: int) -> set[int]:
    import torch

    count = max(1, int(share * len(chances)))
    weights = torch.tensor(chances, dtype=torch.float64).clamp_(min=1e-12)
    return set(torch.multinomial(weights, count, generator=torch.Generator().manual_seed(seed)).tolist())
