"""Server optimizers: how the merged update of a round becomes the step of the published state.

``SERVER_OPTIMIZERS`` is the one table. An optimizer is pure: ``init`` makes a state, ``update`` takes the merged update
and a state and returns the step and the next state, which the coordinator keeps with the version.
"""

from fedcompress.merging.server_optim.base import ServerOptimizer, ServerOptimizerState
from fedcompress.merging.server_optim.sgd import Sgd
from fedcompress.merging.server_optim.table import SERVER_OPTIMIZERS, OuterRow, parse_server_optimizer

__all__ = ["SERVER_OPTIMIZERS", "ServerOptimizer", "OuterRow", "ServerOptimizerState", "Sgd", "parse_server_optimizer"]
