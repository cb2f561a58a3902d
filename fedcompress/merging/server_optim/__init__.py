"""Server optimizers: how the merged update of a round becomes the step of the published state.

``OUTER`` is the one table. An optimizer is pure: ``init`` makes a state, ``update`` takes the merged update
and a state and returns the step and the next state, which the coordinator keeps with the version.
"""

from fedcompress.merging.server_optim.base import Outer, OuterState
from fedcompress.merging.server_optim.sgd import Sgd
from fedcompress.merging.server_optim.table import OUTER, OuterRow, outer_named

__all__ = ["OUTER", "Outer", "OuterRow", "OuterState", "Sgd", "outer_named"]
