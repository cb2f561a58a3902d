"""The engine of a site."""

from __future__ import annotations

from clients.site import Engine
from clients.training.engines.base import WarmEngine
from fedcompress.adapters.attach import AdaptedModel
from fedcompress.config.train_task import TrainTask


def engine_for(attached: AdaptedModel, site: Engine, task: TrainTask, *, micro: int, accumulation: int) -> WarmEngine:
    """The engine that site.toml names."""
    match site.kind:
        case "deepspeed":
            from clients.training.engines.deepspeed import DeepSpeedEngine

            return DeepSpeedEngine(attached, site, task, micro=micro, accumulation=accumulation)
        case _:
            from clients.training.engines.accelerate import AccelerateEngine

            return AccelerateEngine(attached, site, task, micro=micro)
