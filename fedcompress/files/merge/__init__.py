"""Adapter folders and .fcu files of several sites are merged here into one stock PEFT folder, without the base model.

Ranks, alphas and scalings may differ by site. Memory: the result, and one module of all sites.
"""

from fedcompress.files.merge.merge import merge_adapters
from fedcompress.files.merge.peft_types import TYPES

__all__ = ["TYPES", "merge_adapters"]
