"""An engine says how the ranks of a site share a model's training; ``base`` has the contract, and each is one file."""

from clients.training.engines.base import WarmEngine, init_distributed, micro_batches
from clients.training.engines.choose import engine_for

__all__ = ["WarmEngine", "engine_for", "init_distributed", "micro_batches"]
