"""Truncated singular value decomposition of each matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import NO_HINTS, EncoderHints
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.codes.factors import Floats, read_factors, write_factors
from fedcompress.errors import ConfigError
from fedcompress.types import Array, TensorSpec


@dataclass(frozen=True, kw_only=True)
class SVD:
    """The ``rank`` leading singular components, balanced, in bfloat16; small tensors whole.

    Least squared error of that rank (Eckart and Young 1936). With ``importance`` given to the
    encoder, rows are weighted by its square root before, and unweighted after: Fisher-weighted
    SVD (Hsu et al. 2022, arXiv:2207.00112, section 3).
    """

    name: ClassVar[str] = "svd"
    uses_previous_update: ClassVar[bool] = False
    rank: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 4096:
            raise ConfigError("codec.svd.rank", self.rank, "must be from 1 to 4096")

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Factors of all tensors."""

        def factorize(member: TensorSpec, matrix: Floats, rank: int) -> tuple[Floats, Floats]:
            weights = np.ones(matrix.shape[0])
            if hints.importance is not None and member.name in hints.importance:
                given = np.maximum(hints.importance[member.name].astype(np.float64).ravel(), 0)
                weights = np.sqrt(given + 1e-6 * max(float(given.mean()), 1e-30))
            u, s, vt = np.linalg.svd(matrix * weights[:, None], full_matrices=False)
            root = np.sqrt(s[:rank])
            return u[:, :rank] * root / weights[:, None], vt[:rank] * root[:, None]

        writer = Writer()
        write_factors(writer, members, values, self.rank, factorize)
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Products of the factors."""
        return read_factors(reader, members, self.rank)
