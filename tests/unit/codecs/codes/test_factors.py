"""Low-rank factors: when they are sent, and what they decode to."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.codes.factors import Floats, choose_rank, read_factors, write_factors
from fedcompress.errors import PayloadError
from fedcompress.types import TensorSpec


def factorize(member: TensorSpec, matrix: Floats, rank: int) -> tuple[Floats, Floats]:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank], vt[:rank]


@pytest.mark.parametrize(
    ("shape", "rank", "used"),
    [
        ((10, 10), 4, 4),
        ((10, 10), 5, 0),  # 5 * (10 + 10) entries are no fewer than 100
        ((3, 50), 9, 0),
        ((3, 50), 2, 2),
        ((8, 5, 5), 3, 3),
        ((50,), 1, 0),
        ((), 1, 0),
        ((0, 3), 1, 0),
    ],
)
def test_a_rank_is_sent_where_it_is_smaller(shape: tuple[int, ...], rank: int, used: int) -> None:
    assert choose_rank(TensorSpec(name="w", shape=shape), rank) == used


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_factors_round_trip_at_any_scale(scale: float) -> None:
    member = TensorSpec(name="w", shape=(6, 20))
    left, right = np.random.default_rng(0).standard_normal((2, 20))
    value = (scale * np.outer(left[:6], right)).astype(np.float32)
    writer = Writer()
    write_factors(writer, [member], [value], 1, factorize)
    assert len(writer.getvalue()) == 1 + 2 * (6 + 20)
    (decoded,) = read_factors(Reader(writer.getvalue()), [member], 1)
    assert np.abs(decoded - value).max() <= 0.01 * np.abs(value).max()


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_factors_that_are_not_finite_are_refused(bits: int) -> None:
    data = b"\0" + np.array([bits] + [0] * 25, "<u2").tobytes()
    with pytest.raises(PayloadError, match="w: a factor is NaN or infinite"):
        read_factors(Reader(data), [TensorSpec(name="w", shape=(6, 20))], 1)
