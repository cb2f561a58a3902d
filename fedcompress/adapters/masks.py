"""Chooses the weights that a sparse adapter trains, from the base: the same wherever the base is the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fedcompress.errors import ConfigError, one_of

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor
    from torch.nn import Module

KINDS = ("random", "sara", "lift")
# The types that we add to PEFT's own, with the rank of lift's approximation.
_TYPE = re.compile(r"(sara|lift)(?::([1-9][0-9]*))?")


def format_mask_type(kind: str, rank: int) -> str:
    """Format the name that a mask has in a SHiRA config of ours: ``random``, ``sara`` or ``lift:32``.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError("adapter.mask.kind", kind, one_of(KINDS, kind))
    return f"lift:{rank}" if kind == "lift" else kind


def build_masked_config(config: Mapping[str, Any], make: Callable[..., PeftConfig]) -> PeftConfig:
    """Build PEFT's config, with a function that chooses the mask if its type is one that PEFT does not have.

    Args:
        config: fields of PEFT's config; ``mask_type`` may be one of ours.
        make: PEFT's constructor.
    """
    mask_type = _TYPE.fullmatch(str(config.get("mask_type", "")))
    if mask_type is None:
        return make(**config)
    peft_config = make(**{**config, "mask_type": "random"})
    kind, rank = mask_type.group(1), int(mask_type.group(2) or 0)

    def choose_mask(layer: Module, r: int, **options: Any) -> Tensor:
        return build_mask(layer.weight.detach(), kind, r, rank)

    peft_config.mask_fn = choose_mask
    return peft_config


def build_mask(weight: Tensor, kind: str, r: int, rank: int) -> Tensor:
    """Build a mask of 0 and 1 with ``r * (rows + columns)`` ones, as many as LoRA of rank ``r`` has parameters.

    Args:
        weight: shape (rows, columns), of any float dtype.
        kind: ``sara`` takes the weights of the smallest magnitude (SaRA, Hu et al. 2024, arXiv:2409.06633); ``lift``
            those that are the largest in the weight's best approximation of rank ``rank`` (LIFT, Liu et al. 2025,
            arXiv:2506.00772). Of equal ones the first are taken, so that all machines choose the same.
        r: decides how many weights are trained.
        rank: of the approximation; only for ``lift``. Its singular values are found in float64.

    Returns:
        A tensor of the shape, dtype and device of ``weight``.

    Raises:
        ConfigError: the weight is quantised.
    """
    import torch

    if not weight.is_floating_point():
        raise ConfigError("model.quantization", str(weight.dtype), "must be none: the mask is chosen from the weights")
    score = weight.float()
    if kind == "lift":
        left, values, right = torch.linalg.svd(score.double(), full_matrices=False)
        score = ((left[:, :rank] * values[:rank]) @ right[:rank]).float()
    order = torch.sort(score.abs().reshape(-1), descending=kind == "lift", stable=True).indices
    mask = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    mask[order[: r * sum(weight.shape)]] = 1
    return mask.reshape(weight.shape)
