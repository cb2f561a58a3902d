"""The optimizers of local training are listed in ``OPTIMIZERS``, and ``build_optimizer`` makes one for a model."""

from fedcompress.optim.base import OptimizerRule, ShardInfo, StepContext
from fedcompress.optim.engine.build import build_optimizer
from fedcompress.optim.engine.checkpoint import combine_rank_states
from fedcompress.optim.table import OPTIMIZERS, OptimizerRow, parse_optimizer

__all__ = [
    "OPTIMIZERS",
    "OptimizerRow",
    "ShardInfo",
    "StepContext",
    "OptimizerRule",
    "build_optimizer",
    "combine_rank_states",
    "parse_optimizer",
]
