"""Sends the coefficients of each matrix's rows in a seeded basis, which costs no more than its seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedcompress.codecs.base import NO_HINTS, EncoderHints
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.chain import SelectThenQuantize
from fedcompress.codecs.quantizers.exact import BFloat16, Exact
from fedcompress.codecs.quantizers.integer import Integer
from fedcompress.errors import ConfigError
from fedcompress.numerics.scaling import saturate
from fedcompress.numerics.seeded_bases import BASES, basis_of, expand, project
from fedcompress.types import Array, TensorSpec


@dataclass(frozen=True, kw_only=True)
class SubspaceCode:
    """Approximates each matrix's rows by ``rank`` rows of a seeded basis; other tensors are sent whole.

    The basis follows from a seed that is the same for all senders of a round, and from the tensor's name, so that the
    mean of what sites send lies in it too. An update that was trained in this subspace loses only what the rounding
    of coefficients loses. Other updates also lose what lies outside; over rounds with error feedback every direction
    has its turn. A matrix with no more columns than ``rank`` is sent whole.

    Law: the squared error is at most the squared norm, up to the rounding of coefficients.

    Args:
        rank: rows of the basis, and coefficients of each row, from 1 to 4096.
        basis: ``random`` or ``dct``; see ``numerics.seeded_bases.basis_of``.
        bits: of a coefficient: 32 is exact, 16 is bfloat16, and 2 to 8 are as ``int``.

    >>> from fedcompress.codecs import preview
    >>> print(preview("subspace(rank=2)", [[1, 2, 3], [2, 4, 7]]))
    18 bytes, relative squared error 0.03: [1.5, 1.5, 3, 3, 3, 7]
    """

    name: ClassVar[str] = "subspace"
    uses_previous_update: ClassVar[bool] = False
    rank: int = 16
    basis: str = "random"
    bits: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 4096:
            raise ConfigError("codec.subspace.rank", self.rank, "must be from 1 to 4096")
        if self.basis not in BASES:
            raise ConfigError("codec.subspace.basis", self.basis, f"one of {list(BASES)}")
        if self.bits not in (2, 3, 4, 5, 6, 7, 8, 16, 32):
            raise ConfigError("codec.subspace.bits", self.bits, "must be from 2 to 8, 16 or 32")

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Encode the shared seed, then the coefficients of all tensors."""
        writer = Writer()
        writer.varint(hints.shared)
        payload = []
        for member, value in zip(members, values, strict=True):
            if self._is_projected(member):
                payload.append(saturate(project(value, self._build_basis(member, hints.shared))))
            else:
                payload.append(value)
        writer.raw(self._coefficient_code.encode([self._describe_payload(m) for m in members], payload, hints))
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Decode sums of coefficients times basis rows, in a fixed order."""
        seed = reader.varint()
        payload = self._coefficient_code.decode([self._describe_payload(m) for m in members], reader)
        tensors = []
        for member, value in zip(members, payload, strict=True):
            is_projected = self._is_projected(member)
            tensors.append(expand(value, self._build_basis(member, seed)) if is_projected else value)
        return tensors

    def _is_projected(self, member: TensorSpec) -> bool:
        return len(member.shape) == 2 and member.shape[0] > 0 and member.shape[1] > self.rank

    def _build_basis(self, member: TensorSpec, seed: int) -> Array:
        return basis_of(self.basis, member.shape[1], self.rank, seed, member.name)

    def _describe_payload(self, member: TensorSpec) -> TensorSpec:
        """Return the spec of what is sent of a tensor: its coefficients, shape (rows, rank), or itself."""
        return replace(member, shape=(member.shape[0], self.rank)) if self._is_projected(member) else member

    @property
    def _coefficient_code(self) -> SelectThenQuantize:
        if self.bits == 32:
            return SelectThenQuantize(None, Exact())
        return SelectThenQuantize(None, BFloat16() if self.bits == 16 else Integer(bits=self.bits))
