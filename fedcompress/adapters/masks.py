"""Which weights a sparse adapter trains, chosen from the base: the same wherever the same base is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from fedcompress.errors import ConfigError

KINDS = ("random", "sara", "lift")
_TYPE = re.compile(r"(sara|lift)(?::([1-9][0-9]*))?")


def mask_type(kind: str, rank: int) -> str:
    """How a mask is named in a SHiRA config of ours: ``random``, ``sara`` or ``lift:32``.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError("adapter.mask.kind", kind, f"must be one of {list(KINDS)}")
    return f"lift:{rank}" if kind == "lift" else kind


def with_mask(config: Mapping[str, Any], make: Callable[..., Any]) -> Any:
    """PEFT's config, with a function that chooses places if the mask is one of ours."""
    named = _TYPE.fullmatch(str(config.get("mask_type", "")))
    if named is None:
        return make(**config)
    made = make(**{**config, "mask_type": "random"})
    kind, rank = named.group(1), int(named.group(2) or 0)

    def chosen(layer: Any, r: int, **options: Any) -> Any:
        return mask_of(layer.weight.detach(), kind, r, rank)

    made.mask_fn = chosen
    return made


def mask_of(weight: Any, kind: str, r: int, rank: int) -> Any:
    """A mask with ``r * (rows + columns)`` ones.

    ``sara``: the smallest magnitudes. ``lift``: the largest of the best approximation of ``rank``. Of equal ones the
    first.
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
