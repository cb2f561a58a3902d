"""Merge rules say how the decoded updates of several sites become one update.

An elementwise rule sees the same entries of all sites, a LoRA rule sees the factors of one module. ``RULES`` is the
one table of them, and ``Merger`` is the engine that streams updates through a rule. ``WEIGHTINGS`` says how much each
site counts, and ``SERVER_OPTIMIZERS`` how the merged update becomes a step of the published state.

Examples:
    >>> from fedcompress.merging import merge_arrays, parse_rule
    >>> print(merge_arrays(parse_rule("ties(density=0.5)"), [[4, -1, 0, 3], [2, 1, 0, -5]]))
    [ 3.  0.  0. -5.]
"""

from fedcompress.merging.base import AnyRule, Block, Module, Pair, pairs_of
from fedcompress.merging.engine import Merger, check_space, merge_arrays, merge_factors, parse_rule
from fedcompress.merging.server_optim import SERVER_OPTIMIZERS, parse_server_optimizer
from fedcompress.merging.table import RULES, RuleRow
from fedcompress.merging.updates import InMemoryUpdates, UpdateFiles, Updates
from fedcompress.merging.weighting import WEIGHTINGS, parse_weighting, site_weights

__all__ = [
    "RULES",
    "SERVER_OPTIMIZERS",
    "WEIGHTINGS",
    "AnyRule",
    "Block",
    "InMemoryUpdates",
    "Merger",
    "Module",
    "Pair",
    "RuleRow",
    "UpdateFiles",
    "Updates",
    "check_space",
    "merge_arrays",
    "merge_factors",
    "pairs_of",
    "parse_rule",
    "parse_server_optimizer",
    "parse_weighting",
    "site_weights",
]
