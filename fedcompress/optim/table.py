"""The one literal table of optimizers, and the place that imports bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedcompress.errors import ConfigError, MissingPackageError


@dataclass(frozen=True, kw_only=True)
class OptimizerRow:
    """One optimizer. All rows are elementwise, so they run on any flat ZeRO shard."""

    state_bytes: float  # per parameter, without block scales
    placement: str
    paper: str


OPTIMIZERS: dict[str, OptimizerRow] = {
    "adamw8bit": OptimizerRow(
        state_bytes=2.0,
        placement="elementwise: any shard",
        paper="Dettmers et al. 2022 (arXiv:2110.02861), from bitsandbytes, on CPU and GPU",
    ),
    "adamw": OptimizerRow(
        state_bytes=8.0, placement="elementwise: any shard", paper="Loshchilov and Hutter 2019 (arXiv:1711.05101)"
    ),
    "sgd": OptimizerRow(state_bytes=0.0, placement="elementwise: any shard", paper="Robbins and Monro 1951"),
}


def build(name: str, params: Iterable[Any], *, lr: float, weight_decay: float = 0.0) -> Any:
    """A ``torch.optim.Optimizer`` over ``params``.

    Raises:
        ConfigError: unknown name; lists the choices.
        MissingPackageError: bitsandbytes is needed and absent.
    """
    if name not in OPTIMIZERS:
        raise ConfigError("optimizer", name, f"must be one of {list(OPTIMIZERS)}")
    import torch

    match name:
        case "adamw":
            return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)
        case "sgd":
            return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)
        case _:
            try:
                from bitsandbytes.optim import AdamW8bit
            except ImportError as error:
                raise MissingPackageError(
                    "optimizer adamw8bit: bitsandbytes is absent: pip install 'fedcompress[site]'"
                ) from error
            return AdamW8bit(params, lr=lr, weight_decay=weight_decay)
