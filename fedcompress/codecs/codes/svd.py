"""Encodes by a truncated singular value decomposition of each matrix."""

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
    """Sends the ``rank`` leading singular components of each matrix, in bfloat16; small tensors are sent whole.

    Each singular value is shared out evenly between its two vectors. The squared error is the least of that rank
    (Eckart and Young 1936). With ``EncoderHints.importance``, rows are multiplied by the root of their importance
    before the decomposition and divided by it after: Fisher-weighted SVD (Hsu et al. 2022, arXiv:2207.00112,
    section 3).

    Args:
        rank: components that are sent, from 1 to 4096; fewer for matrices with fewer.

    >>> from fedcompress.codecs import preview
    >>> print(preview("svd(rank=1)", [[1, 2, 3], [2, 4, 6], [3, 6, 10]]))
    14 bytes, relative squared error 0.00055: [0.954, 1.91, 3.07, 1.91, 3.81, 6.13, 3.07, 6.13, 9.86]
    """

    name: ClassVar[str] = "svd"
    uses_previous_update: ClassVar[bool] = False
    rank: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 4096:
            raise ConfigError("codec.svd.rank", self.rank, "must be from 1 to 4096")

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Encode the factors of all tensors."""

        def factorize(member: TensorSpec, matrix: Floats, rank: int) -> tuple[Floats, Floats]:
            weights = np.ones(matrix.shape[0])
            if hints.importance is not None and member.name in hints.importance:
                importance = np.maximum(hints.importance[member.name].astype(np.float64).ravel(), 0)
                # Rows of no importance still get a millionth of the mean, so that they can be divided by it.
                weights = np.sqrt(importance + 1e-6 * max(float(importance.mean()), 1e-30))
            u, s, vt = np.linalg.svd(matrix * weights[:, None], full_matrices=False)
            root = np.sqrt(s[:rank])
            return u[:, :rank] * root / weights[:, None], vt[:rank] * root[:, None]

        writer = Writer()
        write_factors(writer, members, values, self.rank, factorize)
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Decode the products of the factors."""
        return read_factors(reader, members, self.rank)
