"""Server optimizers make of the merged update of a round the step of the published state.

``SERVER_OPTIMIZERS`` is the one table of them. An optimizer is pure: ``init`` makes a state; ``update`` takes the
merged update and a state, and returns the step and the next state, which the coordinator keeps with the version.
"""

from fedcompress.merging.server_optim.base import ServerOptimizer, ServerOptimizerState, step_arrays
from fedcompress.merging.server_optim.sgd import Sgd
from fedcompress.merging.server_optim.table import SERVER_OPTIMIZERS, ServerOptimizerRow, parse_server_optimizer

__all__ = [
    "SERVER_OPTIMIZERS",
    "ServerOptimizer",
    "ServerOptimizerRow",
    "ServerOptimizerState",
    "Sgd",
    "parse_server_optimizer",
    "step_arrays",
]
