"""Estimates what decoding takes before anything is decoded: a few bytes may name much work."""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.codecs.base import TensorCode
from fedcompress.codecs.codes.dct import DCT
from fedcompress.codecs.codes.factors import choose_rank
from fedcompress.codecs.codes.powersgd import PowerSGD
from fedcompress.codecs.codes.seeds import Seeds
from fedcompress.codecs.codes.subspace import SubspaceCode
from fedcompress.codecs.codes.svd import SVD
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.codecs.spec import CodecSpec
from fedcompress.codecs.transform.code import Transform
from fedcompress.types import Layout, TensorSpec

PER_ENTRY = 16  # operations of any code on an entry: entropy coding, a trellis, scaling, the check that it is finite


def estimate_work(codec: CodecSpec, layout: Layout) -> int:
    """Estimate the elementary operations that decoding takes at most; a core does about 10^9 of them a second.

    It depends on codec and layout alone, as a section may hold all that the codec allows: ``seeds`` draws ``count``
    numbers for each entry, low-rank codes add ``rank`` products for each.

    Args:
        codec: that the bytes name.
        layout: of the tensors.

    Raises:
        ConfigError: a tensor's group has no clause.
    """
    pairs = zip(codec.clauses, codec.assign(layout), strict=True)
    return sum(_estimate_clause(clause.code, members) for clause, members in pairs)


def _estimate_clause(code: TensorCode, members: Sequence[TensorSpec]) -> int:
    return sum((PER_ENTRY + _count_terms(code, member)) * member.numel for member in members)


def _count_terms(code: TensorCode, member: TensorSpec) -> int:
    """Return of how many terms each entry of a tensor is the sum."""
    grid = MatrixView.of(member.shape)
    match code:
        case Seeds():
            return code.count
        case SVD() | PowerSGD():
            return choose_rank(member, code.rank)
        case SubspaceCode():
            return code.rank
        case Transform():
            return min(code.rank, grid.rows)
        case DCT():
            return min(code.columns, grid.columns)
        case _:
            return 0
