"""Coefficients in a seeded basis of each matrix's rows: the basis costs a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedcompress.codecs.base import NO_HINTS, EncoderHints, read_seed, saturate, write_seed
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.chain import SelectThenQuantize
from fedcompress.codecs.quantizers.exact import BFloat16, Exact
from fedcompress.codecs.quantizers.integer import Integer
from fedcompress.errors import ConfigError
from fedcompress.numerics.seeded_bases import BASES, basis_of, expand, project
from fedcompress.types import Array, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """Each matrix's rows as their best approximation by ``rank`` rows of a basis; other tensors whole.

    The basis follows from a seed that is the same for all senders of a round, and the tensor's name, so that the mean
    of what sites send lies in it too. An update that was trained in it loses only what ``bits`` lose: 32 are exact
    coefficients, 16 bfloat16, 2 to 8 as ``int``. Others lose what is outside; over rounds with error
    feedback every direction has its turn. A matrix with fewer columns than ``rank`` is sent whole.

    Law: squared error at most the squared norm, up to rounding of coefficients.
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
        """The seed, then coefficients of all tensors."""
        writer, sent = Writer(), []
        write_seed(writer, hints.shared)
        for member, value in zip(members, values, strict=True):
            is_cut = self._is_cut(member)
            sent.append(saturate(project(value, self._basis(member, hints.shared))) if is_cut else value)
        writer.raw(self._inner.encode([self._sent(m) for m in members], sent, hints))
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Sums of coefficients times basis rows, in a fixed order."""
        seed = read_seed(reader)
        sent = self._inner.decode([self._sent(m) for m in members], reader)
        return [
            expand(value, self._basis(member, seed)) if self._is_cut(member) else value
            for member, value in zip(members, sent, strict=True)
        ]

    def _is_cut(self, member: TensorSpec) -> bool:
        return len(member.shape) == 2 and member.shape[0] > 0 and member.shape[1] > self.rank

    def _basis(self, member: TensorSpec, seed: int) -> Array:
        return basis_of(self.basis, member.shape[1], self.rank, seed, member.name)

    def _sent(self, member: TensorSpec) -> TensorSpec:
        """The shape of what is sent of a tensor."""
        return replace(member, shape=(member.shape[0], self.rank)) if self._is_cut(member) else member

    @property
    def _inner(self) -> SelectThenQuantize:
        if self.bits == 32:
            return SelectThenQuantize(None, Exact())
        return SelectThenQuantize(None, BFloat16() if self.bits == 16 else Integer(bits=self.bits))
