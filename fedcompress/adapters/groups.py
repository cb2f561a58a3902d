"""Which group a tensor of a PEFT state dict belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass

FACTOR_A = re.compile(r"\.lora_(?:embedding_)?A(?:\.|$)")
FACTOR_B = re.compile(r"\.lora_(?:embedding_)?B(?:\.|$)")


@dataclass(frozen=True, kw_only=True)
class AdapterRow:
    """What the system knows about one PEFT type."""

    merge: str
    law: str
    paper: str


# Types that the training site accepts, and the merge rule that fits their tensors.
ADAPTERS: dict[str, AdapterRow] = {
    "LORA": AdapterRow(
        merge="lora-ridge",
        law="product of the merged factors is the mean of the products, up to the reported error",
        paper="Hu et al. 2021 (arXiv:2106.09685)",
    ),
}


def group_of(name: str) -> str:
    """``lora_a``, ``lora_b`` or ``head`` (a module that is saved whole) from a PEFT key."""
    if FACTOR_A.search(name):
        return "lora_a"
    if FACTOR_B.search(name):
        return "lora_b"
    return "head"
