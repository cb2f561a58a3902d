"""Merge rules: how the decoded updates of several sites become one.

An elementwise rule sees the same entries of all sites, a LoRA rule the factors of one module.
``RULES`` is the one table; ``Merger`` is the streaming engine.
"""

from fedcompress.merging.base import Block, Module, Pair, pairs_of
from fedcompress.merging.engine import Merger, rule_named
from fedcompress.merging.table import RULES, RuleRow
from fedcompress.merging.updates import Held, Spool, Updates

__all__ = [
    "RULES",
    "Block",
    "Held",
    "Merger",
    "Module",
    "Pair",
    "RuleRow",
    "Spool",
    "Updates",
    "rule_named",
    "pairs_of",
]
