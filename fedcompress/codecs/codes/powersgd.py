"""PowerSGD: low-rank factors by warm-started power iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import NO_HINTS, EncoderHints
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.codes.factors import Floats, read_factors, write_factors
from fedcompress.errors import ConfigError
from fedcompress.numerics.philox import signs
from fedcompress.types import Array, TensorSpec


@dataclass(frozen=True, kw_only=True)
class PowerSGD:
    """``P = orthogonalize(M Q)``, ``Q = M^T P``, both in bfloat16; small tensors whole.

    Vogels et al. 2019 (arXiv:1905.13727, algorithm 1), whose Q starts as it ended the round
    before. What was sent then has the same row space, so that the start is rebuilt from
    ``EncoderHints.last`` and needs no state of its own; without it, Q starts as seeded signs.
    Meant for error feedback.
    """

    name: ClassVar[str] = "powersgd"
    uses_previous_update: ClassVar[bool] = True
    rank: int = 4
    sweeps: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 4096:
            raise ConfigError("codec.powersgd.rank", self.rank, "must be from 1 to 4096")
        if not 1 <= self.sweeps <= 100:
            raise ConfigError("codec.powersgd.sweeps", self.sweeps, "must be from 1 to 100")

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Factors of all tensors."""

        def factorize(member: TensorSpec, matrix: Floats, rank: int) -> tuple[Floats, Floats]:
            start = signs(hints.seed, f"powersgd/{member.name}", matrix.shape[1] * rank)
            right = start.reshape(matrix.shape[1], rank).astype(np.float64)
            if hints.last is not None and np.any(hints.last[member.name]):
                before = hints.last[member.name].reshape(matrix.shape).astype(np.float64)
                mix = signs(hints.seed, f"mix/{member.name}", matrix.shape[0] * rank)
                warm = before.T @ mix.reshape(matrix.shape[0], rank)
                right = warm / np.abs(warm).max() + 1e-3 * right
            for _ in range(self.sweeps):
                left = np.linalg.qr(matrix @ right)[0]
                right = matrix.T @ left
            root = np.sqrt(np.maximum(np.sqrt(np.square(right).sum(0)), 1e-30))
            return left * root, (right / root).T

        writer = Writer()
        write_factors(writer, members, values, self.rank, factorize)
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Products of the factors."""
        return read_factors(reader, members, self.rank)
