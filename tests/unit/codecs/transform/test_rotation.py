"""Bases: what is written is read, in every mode."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.codecs.transform.bit_allocation import MAX_SIDE, BitPlan, compute_spectrum, vector_bits
from fedcompress.codecs.transform.rotation import Basis, read_bases, rotate, write_bases
from fedcompress.codecs.transform.trellis import MAX_CLASS
from fedcompress.errors import PayloadError
from fedcompress.types import TensorSpec

SHAPES = st.lists(
    st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.tuples(st.integers(1, 70), st.integers(1, 70)), max_size=6
)


def drawn(member: TensorSpec, generator: np.random.Generator) -> Basis:
    """Nothing, some rows, or some components, with any classes."""
    grid = MatrixView.of(member.shape)
    side, columns, _ = grid
    mode = int(generator.integers(3 if side > 1 else 2)) if member.numel else 0
    count = int(generator.integers(1, min(side, 64) + 1)) if mode else 0
    classes = np.clip(generator.integers(0, MAX_CLASS + 1) + generator.integers(-20, 21, count), 0, MAX_CLASS)
    if mode < 2:
        kept = np.sort(generator.permutation(side)[:count])
        return Basis(grid, None, kept, classes.tolist())
    bits = vector_bits(columns.bit_length(), side.bit_length(), classes)
    unit = generator.standard_normal((side, count))
    vectors = np.rint(unit / np.linalg.norm(unit, axis=0) * 2.0**bits).astype(np.int64)
    vectors[0] += ~vectors.any(0)
    return Basis(grid, vectors, np.arange(count), classes.tolist())


def again(data: bytes, members: list[TensorSpec], rank: int = 64) -> list[Basis]:
    reader = Reader(data)
    found = read_bases(reader, members, rank)
    reader.finish()
    return found


def written(bases: list[Basis]) -> bytes:
    writer = Writer()
    write_bases(writer, bases)
    return writer.getvalue()


def same(left: Basis, right: Basis) -> bool:
    if (left.grid, left.classes) != (right.grid, right.classes):
        return False
    if left.vectors is None or right.vectors is None:
        return left.vectors is right.vectors and (left.row_indices == right.row_indices).all()
    return bool((left.vectors == right.vectors).all())


@settings(max_examples=120, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 9999))
def test_bases_round_trip(shapes: list[tuple[int, ...]], seed: int) -> None:
    generator = np.random.default_rng(seed)
    members = [TensorSpec(name=f"t{i}", shape=s) for i, s in enumerate(shapes)]
    bases = [drawn(m, generator) for m in members]
    data = written(bases)
    assert data == written(bases)
    assert all(same(a, b) for a, b in zip(bases, again(data, members), strict=True))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (7,), (4, 9), (9, 4), (5, 5), (2, 3, 4), (30, 2, 3)])
def test_a_grid_is_a_matrix_and_back(shape: tuple[int, ...]) -> None:
    value = np.arange(math.prod(shape)).reshape(shape)
    grid = MatrixView.of(shape)
    matrix = grid.matrix(value)
    assert matrix.shape == (grid.rows, grid.columns)
    assert value.size == 0 or grid.rows <= grid.columns
    assert (matrix == grid.matrix(value.ravel())).all()
    assert (grid.tensor(matrix, shape) == value).all()
    row, column = grid.locate()
    assert (matrix[row, column] == value.ravel()).all()
    if len(shape) > 1 and value.size:
        assert {tuple(line) for line in matrix} <= {tuple(v.ravel()) for v in value} | {
            tuple(v) for v in value.reshape(shape[0], -1).T
        }


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(2, 40), columns=st.integers(1, 90), count=st.integers(1, 5), seed=st.integers(0, 999))
def test_rotations_are_least_squares(rows: int, columns: int, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    value = generator.standard_normal((rows, columns)).astype(np.float32)
    spectrum = compute_spectrum(value, 1.0)
    count = min(count, spectrum.components.size)
    if not count:
        return
    plan = BitPlan(True, np.arange(count), np.full(count, 30))
    basis, sent = rotate(spectrum, value, plan)
    assert basis.vectors is not None
    matrix = MatrixView.of(value.shape).matrix(value).astype(np.float64)
    left = matrix - basis.vectors @ sent
    assert (
        np.abs(basis.vectors.T @ left).max() < 1e-6 * np.abs(basis.vectors).max() * max(np.abs(matrix).max(), 1) * rows
    )
    assert (basis.vectors.sum(0) >= -rows).all(), "signs do not depend on the eigensolver"
    # rounding costs little, and every vector is one that a reader takes
    ideal = spectrum.components[count:].sum()
    assert np.square(left).sum() <= ideal + 0.02 * np.square(matrix).sum()
    assert basis.vectors.any(0).all()
    again(written([basis]), [TensorSpec(name="w", shape=value.shape)])


def test_every_vector_length_is_one_that_survives_rounding() -> None:
    """A unit vector has an entry of at least 1 / sqrt(side); rounded, it is not 0."""
    for side in (2, 3, 4, 7, 8, 63, 64, 65, 1023, MAX_SIDE):
        bits = vector_bits(1, side.bit_length(), np.arange(MAX_CLASS + 1))
        assert ((2.0**bits) / np.sqrt(side) >= 0.5).all(), side
        assert bits.max() <= 12


def test_steps_weigh_alike_whatever_the_length() -> None:
    vectors = np.array([[3, 1], [4, 0]])
    basis = Basis(MatrixView(2, 9, False), vectors, np.arange(2), [0, 0])
    assert basis.steps(2.0, 4.0).tolist() == [0.2, 1.0]
    assert Basis(MatrixView(2, 9, False), None, np.array([1]), [0]).steps(2.0, 4.0).tolist() == [1.0]


def test_more_components_than_the_rank() -> None:
    basis = Basis(MatrixView(4, 9, False), np.eye(4, dtype=np.int64) * 4, np.arange(4), [5, 5, 4, 3])
    member = TensorSpec(name="wide", shape=(4, 9))
    data = written([basis])
    again(data, [member], rank=4)
    with pytest.raises(PayloadError, match="wide: more components than 3"):
        again(data, [member], rank=3)
