"""How moments are kept between steps: float32, bfloat16, or 8 or 4 bits in blocks.

Eight bits are bitsandbytes' dynamic maps in blocks of 256 (Dettmers et al. 2022,
arXiv:2110.02861, section 2). Four bits are a map of 16 values in blocks of 128, for
second moments linear and without a zero, since a second moment that is rounded to 0 makes a step infinite
(Li et al. 2023, arXiv:2309.01507, section 4). bfloat16 is rounded at random: to the nearest, a
second moment with beta2 = 0.999 would never fall. Moments with fewer than 4096 entries in the
whole parameter stay float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fedcompress.errors import MissingPackageError
from fedcompress.optim.base import ShardInfo, derive_seed

SMALL = 4096
BLOCK = {"8bit": 256, "4bit": 128}
_BITS = {"fp32": 32, "bf16": 16, "8bit": 8, "4bit": 4}


def kind_for(store: str, numel: int) -> str:
    """How a moment of so many entries is kept."""
    return store if numel >= SMALL else "fp32"


def stored_bytes(store: str, numel: int) -> int:
    """Bytes of a moment of a whole parameter."""
    kind = kind_for(store, numel)
    scales = -(-numel // BLOCK[kind]) * 4 if kind in BLOCK else 0
    return -(-numel * _BITS[kind] // 8) + scales


def pack(values: Any, kind: str, *, signed: bool, part: ShardInfo, step: int, key: str) -> Any:
    """A moment as it is kept: a tensor, or a dict of tensors with its kind.

    Args:
        values: float32, any shape.
        kind: from ``kind_for``.
        signed: whether there may be values below 0.
        part: for the noise of bfloat16, which does not depend on the placement of dense moments.
        step: for the noise.
        key: of the moment, for the noise.
    """
    import torch

    match kind:
        case "fp32":
            return values
        case "bf16":
            return _stochastic(values, part.start, derive_seed(part.seed, part.name, step, key))
        case "8bit":
            codes, scales = _bitsandbytes().quantize_blockwise.default(
                values.contiguous(), _dynamic(signed, values.device), BLOCK[kind]
            )
            return {"codes": codes, "scales": scales}
        case _:
            flat, block = values.reshape(-1), BLOCK[kind]
            padded = torch.nn.functional.pad(flat, (0, -flat.numel() % block)).view(-1, block)
            scales = padded.abs().amax(1)
            unit = padded / torch.where(scales > 0, scales, 1)[:, None]
            codes = torch.bucketize(unit, _edges(signed, values.device)).to(torch.uint8).view(-1)[: flat.numel()]
            codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
            return {"nibbles": codes[::2] | codes[1::2] << 4, "scales": scales, "shape": list(values.shape)}


def unpack(kept: Any, *, signed: bool) -> Any:
    """Float32 of ``pack``; a tensor that was float32 is the tensor itself."""
    import torch

    if isinstance(kept, torch.Tensor):
        return kept.float()
    if "codes" in kept:
        codes, scales = kept["codes"], kept["scales"]
        return _bitsandbytes().dequantize_blockwise.default(
            codes, scales, _dynamic(signed, codes.device), BLOCK["8bit"], torch.float32
        )
    nibbles, scales, shape = kept["nibbles"], kept["scales"], kept["shape"]
    codes = torch.stack([nibbles & 15, nibbles >> 4], 1).view(-1)
    numel, block = int(torch.Size(shape).numel()), BLOCK["4bit"]
    values = _levels(signed, codes.device)[codes[:numel].long()]
    padded = torch.nn.functional.pad(values, (0, -numel % block)).view(-1, block) * scales[:, None]
    return padded.view(-1)[:numel].view(shape)


def bytes_of(kept: Any) -> int:
    """Bytes that are allocated for a value of a state."""
    import torch

    if isinstance(kept, torch.Tensor):
        return int(kept.numel() * kept.element_size())
    return sum(map(bytes_of, kept.values())) if isinstance(kept, dict) else 0


def placed(value: Any, device: Any, *, copy: bool = False) -> Any:
    """A value of a state on a device; with ``copy``, in memory of its own even if it was there."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device, copy=copy)
    return {k: placed(v, device, copy=copy) for k, v in value.items()} if isinstance(value, dict) else value


def _stochastic(values: Any, start: int, seed: int) -> Any:
    """bfloat16, up or down with the probability that keeps the mean; bits from places, not from a sequence."""
    import torch

    flat = values.contiguous().view(-1)
    place = torch.arange(start, start + flat.numel(), device=values.device, dtype=torch.int64)
    mixed = place * 0x9E3779B1 + (seed & 0x7FFFFFFF)
    mixed = (mixed ^ mixed >> 15) * 0x85EBCA6B & 0xFFFFFFFF
    noise = ((mixed ^ mixed >> 13) * 0xC2B2AE35 >> 16 & 0xFFFF).to(torch.int32)
    bits = flat.view(torch.int32) + noise
    return (bits & -0x10000).view(torch.float32).to(torch.bfloat16).view(values.shape)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes  # noqa: F401  registers the operators
    except ImportError as error:
        raise MissingPackageError("optimizer state 8bit: bitsandbytes is absent: pip install bitsandbytes") from error
    import torch

    return torch.ops.bitsandbytes


@cache
def _dynamic(signed: bool, device: Any) -> Any:
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=signed).to(device)


@cache
def _levels(signed: bool, device: Any) -> Any:
    """Sixteen levels: signed as the dynamic map of 8 bits is made, but of 4; unsigned i / 16 without 0."""
    import torch

    if not signed:
        return torch.arange(1, 17, device=device, dtype=torch.float32) / 16
    small = (0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875)
    return torch.tensor([*(-x for x in reversed(small)), 0.0, *small, 1.0], device=device)


@cache
def _edges(signed: bool, device: Any) -> Any:
    levels = _levels(signed, device)
    return (levels[1:] + levels[:-1]) / 2
