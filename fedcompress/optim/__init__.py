"""Optimizers of local training. ``OPTIMIZERS`` is the one table; ``build`` makes one for a model."""

from fedcompress.optim.base import Part, Rule
from fedcompress.optim.engine.build import build
from fedcompress.optim.engine.checkpoint import combine
from fedcompress.optim.table import OPTIMIZERS, OptimizerRow, optimizer_named

__all__ = ["OPTIMIZERS", "OptimizerRow", "Part", "Rule", "build", "combine", "optimizer_named"]
