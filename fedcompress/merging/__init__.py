"""Merge rules: how the decoded updates of several sites become one.

An elementwise rule sees the same entries of all sites, a LoRA rule the factors of one module.
``RULES`` is the one table; ``Merger`` is the streaming engine. ``WEIGHTINGS`` says how much a site counts,
``SERVER_OPTIMIZERS`` how the merged update becomes a step of the published state.
"""

from fedcompress.merging.base import Block, Module, Pair, pairs_of
from fedcompress.merging.engine import Merger, check_space, parse_rule
from fedcompress.merging.server_optim import SERVER_OPTIMIZERS, parse_server_optimizer
from fedcompress.merging.table import RULES, RuleRow
from fedcompress.merging.updates import InMemoryUpdates, UpdateFiles, Updates
from fedcompress.merging.weighting import WEIGHTINGS, parse_weighting, site_weights

__all__ = [
    "SERVER_OPTIMIZERS",
    "RULES",
    "WEIGHTINGS",
    "Block",
    "InMemoryUpdates",
    "Merger",
    "Module",
    "Pair",
    "RuleRow",
    "UpdateFiles",
    "Updates",
    "parse_server_optimizer",
    "pairs_of",
    "check_space",
    "parse_rule",
    "site_weights",
    "parse_weighting",
]
