"""Merge rules: how the decoded updates of several sites become one.

A rule works unit by unit: a unit is one tensor, or the two factors of one LoRA module.
``RULES`` is the one table; ``merge`` is the streaming engine.
"""

from fedcompress.merging.base import Rule, Unit, units_of
from fedcompress.merging.engine import Merger, rule_named
from fedcompress.merging.table import RULES, RuleRow

__all__ = ["RULES", "Merger", "Rule", "RuleRow", "Unit", "rule_named", "units_of"]
