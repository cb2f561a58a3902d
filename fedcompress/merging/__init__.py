"""Merge rules: how the decoded updates of several sites become one.

An elementwise rule sees the same entries of all sites, a LoRA rule the factors of one module.
``RULES`` is the one table; ``Merger`` is the streaming engine. ``WEIGHTINGS`` says how much a site counts, ``OUTER``
how the merged update becomes a step of the published state.
"""

from fedcompress.merging.base import Block, Module, Pair, pairs_of
from fedcompress.merging.engine import Merger, check_space, rule_named
from fedcompress.merging.server_optim import OUTER, outer_named
from fedcompress.merging.table import RULES, RuleRow
from fedcompress.merging.updates import Held, Spool, Updates
from fedcompress.merging.weighting import WEIGHTINGS, site_weights, weighting_named

__all__ = [
    "OUTER",
    "RULES",
    "WEIGHTINGS",
    "Block",
    "Held",
    "Merger",
    "Module",
    "Pair",
    "RuleRow",
    "Spool",
    "Updates",
    "outer_named",
    "pairs_of",
    "check_space",
    "rule_named",
    "site_weights",
    "weighting_named",
]
