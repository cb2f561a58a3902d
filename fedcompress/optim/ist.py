"""IST chooses which layers to train, from how much the loss suffers when others are suppressed.

Yao et al. 2024 (arXiv:2410.11772, algorithm 1), with the released code's defaults. It is a controller beside any
optimizer: before a step, set ``optimizer.active_layers = draw_layers(...)``; every ``update_gap`` steps, evaluate the
sets of ``draw_candidates(...)`` on one batch inside of ``suppress_layers``, and give their losses to
``update_scores``. The released code draws with torch's global generator. Here all is drawn from seed and step, and
candidates may be equal, where the code draws again.

Library function: no command or run setting reaches it yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.numerics.philox import hash_seed
from fedcompress.optim.base import check_positive, check_share
from fedcompress.optim.engine.parameter_roles import find_layer_path, number_layers


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The importance of layers is a score for each, and how the scores are used.

    A score is high where suppression does little harm: the less important a layer, the higher its score.

    Args:
        scores: score of each layer; 0 at first.
        trained: share of the layers that a step trains.
        suppressed: share of the layers that a candidate suppresses.
        candidates: number of sets that are tried at an update.
        update_gap: steps between updates of the scores.
        lr: learning rate of the scores.
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


def draw_layers(importance: Importance, step: int, seed: int) -> set[int]:
    """Draw the layers to train in a step: by ``sigmoid(-score)``, without replacement, so important ones more often.

    Args:
        importance: scores of the layers.
        step: number of the step.
        seed: seed of the run.

    Returns:
        Numbers of the layers.
    """
    chances = [1 - _sigmoid(score) for score in importance.scores]
    return _draw_without_replacement(chances, importance.trained, hash_seed(seed, "ist", step))


def draw_candidates(importance: Importance, step: int, seed: int) -> list[set[int]]:
    """Draw sets of layers to suppress: by ``sigmoid(score)``, so unimportant ones more often.

    Args:
        importance: scores of the layers.
        step: number of the step.
        seed: seed of the run.

    Returns:
        Numbers of the layers of each set; no set if no update is due in this step.
    """
    if step % importance.update_gap or not step:
        return []
    chances = [_sigmoid(score) for score in importance.scores]
    return [
        _draw_without_replacement(chances, importance.suppressed, hash_seed(seed, "ist", step, number))
        for number in range(importance.candidates)
    ]


def update_scores(importance: Importance, sets: Sequence[Iterable[int]], losses: Sequence[float]) -> Importance:
    """Update the scores: layers whose suppression kept the loss low rise, others fall.

    ``score += lr * (exp(-loss) - mean) * p (1 - p)`` for each layer of each set. p is the sigmoid of the score before,
    and ``mean`` the mean of ``exp(-loss)`` over the sets.

    Args:
        importance: scores before.
        sets: layers that were suppressed in each candidate.
        losses: loss with each candidate.

    Returns:
        The same settings with new scores.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    if not all(map(math.isfinite, losses)):
        raise NonFiniteError(f"ist: losses {list(losses)}: must be finite")
    rewards = [math.exp(-loss) for loss in losses]
    mean = sum(rewards) / max(1, len(rewards))
    scores = list(importance.scores)
    for layers, reward in zip(sets, rewards, strict=True):
        for layer in layers:
            chance = _sigmoid(importance.scores[layer])
            scores[layer] += importance.lr * (reward - mean) * chance * (1 - chance)
    return replace(importance, scores=tuple(scores))


@contextmanager
def suppress_layers(model: Any, layers: Iterable[int], factor: float = 0.25) -> Iterator[None]:
    """Scale the adapters of some layers down inside of the context.

    Args:
        model: a model with peft's adapters, whose modules have a ``scaling`` by adapter.
        layers: numbers of the layers, as ``number_layers`` gives them.
        factor: share of their strength that the adapters keep.

    Yields:
        Nothing.

    Raises:
        ConfigError: no adapter is in a layer.
    """
    named = [(n, module) for n, module in model.named_modules() if isinstance(getattr(module, "scaling", None), dict)]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    numbers = number_layers([*trained, *(name for name, _ in named)])  # as the optimizer numbers them
    adapters = [(numbers.get(find_layer_path(name), -1), module) for name, module in named]
    if not any(layer >= 0 for layer, _ in adapters):
        raise ConfigError("ist.model", type(model).__name__, "must have adapters with a scaling in its layers")
    chosen = set(layers)
    before = [(module, dict(module.scaling)) for layer, module in adapters if layer in chosen]
    for module, scaling in before:
        module.scaling.update({name: factor * value for name, value in scaling.items()})
    try:
        yield
    finally:
        for module, scaling in before:
            module.scaling.update(scaling)


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0


def _draw_without_replacement(chances: Sequence[float], share: float, seed: int) -> set[int]:
    import torch

    count = max(1, int(share * len(chances)))
    weights = torch.tensor(chances, dtype=torch.float64).clamp_(min=1e-12)
    return set(torch.multinomial(weights, count, generator=torch.Generator().manual_seed(seed)).tolist())
