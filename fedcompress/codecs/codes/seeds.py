"""Updates as scalars along seeded directions: a full model's round in kilobytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import NO_HINTS, EncoderHints, read_seed, saturate, write_seed
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.errors import ConfigError, PayloadError
from fedcompress.numerics.philox import signs
from fedcompress.types import Array, TensorSpec

CONSECUTIVE, LISTED = 0, 1


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """``sum_i c_i z_i`` with Rademacher directions ``z_i`` that the receiver draws from seeds.

    A zeroth-order optimizer makes such updates (MeZO, Malladi et al. 2023, arXiv:2305.17333;
    FedKSeed, Qin et al. 2024, arXiv:2312.06353, which draws Gaussian directions): ``encode_pairs``
    sends its seeds and scalars as they are. ``encode`` takes any update, and projects what is
    left of it on one direction after another, so that the error never grows; ``count`` directions
    hold about ``count`` of n shares of the energy.
    """

    name: ClassVar[str] = "seeds"
    uses_previous_update: ClassVar[bool] = False
    count: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 65536:
            raise ConfigError("codec.seeds.count", self.count, "must be from 1 to 65536")

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """The first seed and the scalars."""
        rest = [v.reshape(-1).astype(np.float64) for v in values]
        numel = sum(v.size for v in rest)
        scalars = np.zeros(self.count if numel else 0, np.float32)
        for i in range(scalars.size):
            drawn = [direction(hints.seed + i, m) for m in members]
            share = sum(float(r @ z) for r, z in zip(rest, drawn, strict=True)) / numel
            scalars[i] = np.clip(share, -3e38, 3e38)
            for r, z in zip(rest, drawn, strict=True):
                r -= scalars[i] * z
        writer = Writer()
        writer.u8(CONSECUTIVE)
        write_seed(writer, hints.seed)
        _write_scalars(writer, scalars)
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """The sum, in order, each product and each sum rounded to float32."""
        mode = reader.u8()
        if mode not in (CONSECUTIVE, LISTED):
            raise PayloadError(f"section: seeds: mode {mode}: must be {CONSECUTIVE} or {LISTED}")
        first = read_seed(reader) if mode == CONSECUTIVE else 0
        count = reader.varint()
        if count > self.count:
            raise PayloadError(f"section: seeds: {count}: at most {self.count}")
        listed = range(first, first + count) if mode == CONSECUTIVE else [read_seed(reader) for _ in range(count)]
        scalars = np.frombuffer(reader.raw(4 * count), "<f4").astype(np.float32)
        if not np.isfinite(scalars).all():
            raise PayloadError("section: scalar: must be finite")
        out = [np.zeros(m.numel, np.float32) for m in members]
        with np.errstate(over="ignore", invalid="ignore"):
            for seed, scalar in zip(listed, scalars, strict=True):
                for total, member in zip(out, members, strict=True):
                    total += scalar * direction(seed, member)
        return [saturate(v).reshape(m.shape) for v, m in zip(out, members, strict=True)]


def direction(seed: int, member: TensorSpec) -> Array:
    """The signs of one tensor for one seed, flat."""
    return signs(seed, f"direction/{member.name}", member.numel)


def encode_pairs(pairs: Sequence[tuple[int, float]]) -> bytes:
    """A section's body from the seeds and scalars of a zeroth-order optimizer."""
    writer = Writer()
    writer.u8(LISTED)
    writer.varint(len(pairs))
    for seed, _ in pairs:
        write_seed(writer, seed)
    writer.raw(np.array([scalar for _, scalar in pairs], "<f4").tobytes())
    return writer.getvalue()


def _write_scalars(writer: Writer, scalars: Array) -> None:
    writer.varint(scalars.size)
    writer.raw(scalars.astype("<f4").tobytes())
