"""Optimizers of local training. ``OPTIMIZERS`` is the one table; ``build`` makes one."""

from fedcompress.optim.table import OPTIMIZERS, OptimizerRow, build

__all__ = ["OPTIMIZERS", "OptimizerRow", "build"]
