"""Sends updates as scalars along seeded directions, so that a full model's round takes kilobytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import NO_HINTS, EncoderHints
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.errors import ConfigError, PayloadError
from fedcompress.numerics.philox import signs
from fedcompress.numerics.scaling import saturate
from fedcompress.types import Array, TensorSpec

CONSECUTIVE = 0  # mode byte: the first seed, then scalars of consecutive seeds
LISTED = 1  # mode byte: a seed for each scalar


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Sends the scalars of ``sum_i c_i z_i``, whose directions ``z_i`` the receiver draws from seeds.

    Directions are Rademacher: +1 or -1. A zeroth-order optimizer makes such updates (MeZO, Malladi et al. 2023,
    arXiv:2305.17333; FedKSeed, Qin et al. 2024, arXiv:2312.06353, which draws Gaussian directions), and
    ``encode_pairs`` sends its seeds and scalars as they are. ``encode`` takes any update, and projects what is left of
    it on one direction after another, so that the error never grows; of n entries, ``count`` directions hold about
    the share ``count / n`` of the energy.

    Args:
        count: the largest number of directions, from 1 to 65536.

    >>> from fedcompress.codecs import preview
    >>> print(preview("seeds(count=4)", [2, -2, 2, -2]))
    20 bytes, relative squared error 0.25: [3, -1, 1, -1]
    """

    name: ClassVar[str] = "seeds"
    uses_previous_update: ClassVar[bool] = False
    count: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 65536:
            raise ConfigError("codec.seeds.count", self.count, "must be from 1 to 65536")

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Encode the first seed and the scalars of ``count`` consecutive seeds."""
        rest = [v.reshape(-1).astype(np.float64) for v in values]
        numel = sum(v.size for v in rest)
        scalars = np.zeros(self.count if numel else 0, np.float32)
        for i in range(scalars.size):
            directions = [direction(hints.seed + i, m) for m in members]
            scalar = sum(float(r @ z) for r, z in zip(rest, directions, strict=True)) / numel
            scalars[i] = np.clip(scalar, -3e38, 3e38)
            for r, z in zip(rest, directions, strict=True):
                r -= scalars[i] * z
        writer = Writer()
        writer.u8(CONSECUTIVE)
        writer.varint(hints.seed)
        writer.varint(scalars.size)
        writer.raw(scalars.astype("<f4").tobytes())
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Decode the sum, in order; each product and each sum is rounded to float32."""
        mode = reader.u8()
        if mode not in (CONSECUTIVE, LISTED):
            raise PayloadError(f"section: seeds: mode {mode}: must be {CONSECUTIVE} or {LISTED}")
        first = reader.varint() if mode == CONSECUTIVE else 0
        count = reader.varint()
        if count > self.count:
            raise PayloadError(f"section: seeds: {count}: at most {self.count}")
        seeds = range(first, first + count) if mode == CONSECUTIVE else [reader.varint() for _ in range(count)]
        scalars = np.frombuffer(reader.raw(4 * count), "<f4").astype(np.float32)
        if not np.isfinite(scalars).all():
            raise PayloadError("section: scalar: must be finite")
        totals = [np.zeros(m.numel, np.float32) for m in members]
        with np.errstate(over="ignore", invalid="ignore"):
            for seed, scalar in zip(seeds, scalars, strict=True):
                for total, member in zip(totals, members, strict=True):
                    total += scalar * direction(seed, member)
        return [saturate(v).reshape(m.shape) for v, m in zip(totals, members, strict=True)]


def direction(seed: int, member: TensorSpec) -> Array:
    """Draw one tensor's part of the direction of a seed: +1 or -1, float32, shape (numel,)."""
    return signs(seed, f"direction/{member.name}", member.numel)


def encode_pairs(pairs: Sequence[tuple[int, float]]) -> bytes:
    """Encode the (seed, scalar) pairs of a zeroth-order optimizer as the body of a section."""
    writer = Writer()
    writer.u8(LISTED)
    writer.varint(len(pairs))
    for seed, _ in pairs:
        writer.varint(seed)
    writer.raw(np.array([scalar for _, scalar in pairs], "<f4").tobytes())
    return writer.getvalue()
