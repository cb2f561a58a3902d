"""Decides which group a tensor of a PEFT state dict belongs to."""

from __future__ import annotations

import re

PREFIX = "base_model.model."  # of the names of tensors in PEFT's files
# The factors A and B of LoRA; a layer of embeddings has an underscore where others have a dot.
FACTOR_A = re.compile(r"\.lora_(?:embedding_A|A\.)")
FACTOR_B = re.compile(r"\.lora_(?:embedding_B|B\.)")
# What PEFT's other types call their tensors; AdaLoRA's factors end in lora_A, without a dot.
PART = re.compile(
    r"\.(?:ia3|vera|pvera|randlora|miss|hada|lokr|fourierft|waveft|c3a|shira|supertuning|vblora|unilora"
    r"|tinylora|oft|boft|hra|road|psoft|hira|delora|gralora|glora|lily|peanut|deft|frod|osf|beft|adaption)_"
    r"|\.lora_(?:A$|B$|E$|magnitude_vector)|\.ln_tuning_layers\.|\.trainable_tokens_delta$|^prompt_embeddings$"
)


# Factors that hold those of all experts of a module of transformers: PEFT stacks A by expert and B by component, so
# that a column of B and the row of A at the same place do not belong together: they are no factors of one matrix.
EXPERTS = re.compile(r"\.experts(?:\.base_layer)*\.lora_[AB]\.")


def group_of(name: str) -> str:
    """Return the group of a tensor by its name.

    Returns:
        ``lora_a`` or ``lora_b`` for LoRA's factors, ``other`` for a tensor of another adapter type and for factors of
        several experts, which are merged entry by entry, and ``head`` for any other: it is of a module that is trained
        and saved whole.
    """
    if EXPERTS.search(name):
        return "other"
    if FACTOR_A.search(name):
        return "lora_a"
    if FACTOR_B.search(name):
        return "lora_b"
    return "other" if PART.search(name) else "head"
