"""The engine is chosen by ``engine.kind`` in site.toml."""

from __future__ import annotations

from clients.site import Engine
from clients.training.engines.base import WarmEngine
from fedcompress.adapters.attach import AdaptedModel
from fedcompress.config.train_task import TrainTask


def engine_for(attached: AdaptedModel, site: Engine, task: TrainTask, *, micro: int, accumulation: int) -> WarmEngine:
    """Build the engine that site.toml names.

    Args:
        attached: the model with what is trained in it.
        site: the section ``[engine]``.
        task: a round; says optimizer, learning rate, seed and clipping.
        micro: examples that a rank handles at once.
        accumulation: micro-batches of an optimizer step.

    Returns:
        The engine; its import is the only one of its framework.
    """
    match site.kind:
        case "deepspeed":
            from clients.training.engines.deepspeed import DeepSpeedEngine

            return DeepSpeedEngine(attached, site, task, micro=micro, accumulation=accumulation)
        case _:
            from clients.training.engines.accelerate import AccelerateEngine

            return AccelerateEngine(attached, site, task, micro=micro)
