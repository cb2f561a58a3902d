"""Moments are stored between steps in float32, in bfloat16, or in blocks of 8 or 4 bits.

* Eight bits are bitsandbytes' dynamic maps in blocks of 256 entries (Dettmers et al. 2022, arXiv:2110.02861,
  section 2).
* Four bits are a map of 16 values in blocks of 128 entries. For second moments it is linear and has no zero, since
  a second moment that is rounded to 0 makes a step infinite (Li et al. 2023, arXiv:2309.01507, section 4).
* bfloat16 is rounded at random. Rounded to the nearest, a second moment with beta2 = 0.999 would never fall.

Moments with fewer than 4096 entries in the whole parameter stay in float32.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from fedcompress.errors import MissingPackageError
from fedcompress.numerics.philox import hash_seed
from fedcompress.optim.base import ShardInfo

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 4096  # moments with fewer entries stay in float32
BLOCK = {"8bit": 256, "4bit": 128}  # entries that share one float32 scale
_BITS = {"fp32": 32, "bf16": 16, "8bit": 8, "4bit": 4}  # bits of one entry


def choose_store(store: str, numel: int) -> str:
    """Return how a moment of so many entries is stored: as asked, or in float32 if it is small."""
    return store if numel >= SMALL else "fp32"


def count_stored_bytes(store: str, numel: int) -> int:
    """Return the bytes of one stored moment of a whole parameter, scales included."""
    kind = choose_store(store, numel)
    scales = -(-numel // BLOCK[kind]) * 4 if kind in BLOCK else 0
    return -(-numel * _BITS[kind] // 8) + scales


def pack_moment(values: Tensor, store: str, *, signed: bool, shard: ShardInfo, step: int, key: str) -> Any:
    """Pack a moment as it is stored between two steps.

    Args:
        values: float32, any shape.
        store: how it is stored, from ``choose_store``.
        signed: whether values may be below 0.
        shard: the shard that the moment is of. The noise of bfloat16 depends on the place of an entry in the
            parameter, so that it is the same for any placement of a moment with one number for each entry.
        step: number of the step, for the noise.
        key: state key of the moment, for the noise.

    Returns:
        ``values`` itself for ``fp32``, a bfloat16 tensor for ``bf16``, and else a dict. For ``8bit`` that is
        ``codes`` (uint8, in the shape of the moment) and ``scales`` (float32, one a block). For ``4bit`` it is
        ``nibbles`` (uint8, two codes a byte, flat), ``scales`` and the ``shape`` as a list.
    """
    match store:
        case "fp32":
            return values
        case "bf16":
            return _round_at_random(values, shard.start, hash_seed(shard.seed, shard.name, step, key))
        case "8bit":
            codes, scales = _load_bitsandbytes().quantize_blockwise.default(
                values.contiguous(), _load_dynamic_map(signed, values.device), BLOCK[store]
            )
            return {"codes": codes, "scales": scales}
        case _:
            return _pack_nibbles(values, signed)


def _pack_nibbles(values: Tensor, signed: bool) -> dict[str, Any]:
    import torch

    flat = values.reshape(-1)
    block = BLOCK["4bit"]
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % block)).view(-1, block)
    scales = padded.abs().amax(1)
    unit = padded / torch.where(scales > 0, scales, 1)[:, None]
    codes = torch.bucketize(unit, _build_edges(signed, values.device)).to(torch.uint8).view(-1)[: flat.numel()]
    codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
    return {"nibbles": codes[::2] | codes[1::2] << 4, "scales": scales, "shape": list(values.shape)}


def unpack_moment(packed: Any, *, signed: bool) -> Tensor:
    """Return the float32 values of what ``pack_moment`` returned; a float32 tensor comes back as it is, uncopied."""
    import torch

    if isinstance(packed, torch.Tensor):
        return packed.float()
    if "codes" in packed:
        codes = packed["codes"]
        return _load_bitsandbytes().dequantize_blockwise.default(
            codes, packed["scales"], _load_dynamic_map(signed, codes.device), BLOCK["8bit"], torch.float32
        )
    nibbles = packed["nibbles"]
    shape = packed["shape"]
    codes = torch.stack([nibbles & 15, nibbles >> 4], 1).view(-1)
    numel = int(torch.Size(shape).numel())
    block = BLOCK["4bit"]
    values = _build_levels(signed, codes.device)[codes[:numel].long()]
    padded = torch.nn.functional.pad(values, (0, -numel % block)).view(-1, block) * packed["scales"][:, None]
    return padded.view(-1)[:numel].view(shape)


def count_bytes(value: Any) -> int:
    """Return the bytes that the tensors in a value of a state take."""
    import torch

    if isinstance(value, torch.Tensor):
        return int(value.numel() * value.element_size())
    return sum(map(count_bytes, value.values())) if isinstance(value, dict) else 0


def move_to_device(value: Any, device: Any, *, copy: bool = False) -> Any:
    """Return a value of a state with its tensors on a device.

    Args:
        value: tensor, dict of such values, or anything else, which is returned as it is.
        device: device to move to.
        copy: give every tensor memory of its own, even if it is on the device already.

    Returns:
        A value of the same structure.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device, copy=copy)
    if isinstance(value, dict):
        return {key: move_to_device(item, device, copy=copy) for key, item in value.items()}
    return value


def copy_tensors(value: Any) -> Any:
    """Return a value of a state whose tensors have memory of their own, where they are."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copy_tensors(item) for key, item in value.items()}
    return value


def _round_at_random(values: Tensor, start: int, seed: int) -> Tensor:
    """Round to bfloat16, up or down with the probabilities that keep the mean.

    The random bits of an entry follow from its place in the parameter, not from its place in a sequence of draws.
    """
    import torch

    flat = values.contiguous().view(-1)
    place = torch.arange(start, start + flat.numel(), device=values.device, dtype=torch.int64)
    mixed = place * 0x9E3779B1 + (seed & 0x7FFFFFFF)
    mixed = (mixed ^ mixed >> 15) * 0x85EBCA6B & 0xFFFFFFFF
    noise = ((mixed ^ mixed >> 13) * 0xC2B2AE35 >> 16 & 0xFFFF).to(torch.int32)
    bits = flat.view(torch.int32) + noise
    return (bits & -0x10000).view(torch.float32).to(torch.bfloat16).view(values.shape)


def _load_bitsandbytes() -> Any:
    try:
        import bitsandbytes  # noqa: F401  registers the operators
    except ImportError as error:
        raise MissingPackageError("optimizer state 8bit: bitsandbytes is absent: pip install bitsandbytes") from error
    import torch

    return torch.ops.bitsandbytes


@cache
def _load_dynamic_map(signed: bool, device: Any) -> Tensor:
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=signed).to(device)


@cache
def _build_levels(signed: bool, device: Any) -> Tensor:
    """Build the 16 values of a 4-bit code, float32 and ascending.

    Signed ones are made as the dynamic map of 8 bits is, but for 4; unsigned ones are i / 16 for i from 1 to 16.
    """
    import torch

    if not signed:
        return torch.arange(1, 17, device=device, dtype=torch.float32) / 16
    small = (0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875)
    return torch.tensor([*(-x for x in reversed(small)), 0.0, *small, 1.0], device=device)


@cache
def _build_edges(signed: bool, device: Any) -> Tensor:
    """Build the 15 values half way between neighbouring levels."""
    levels = _build_levels(signed, device)
    return (levels[1:] + levels[:-1]) / 2
