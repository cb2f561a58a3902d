"""Rows of numbers through the trellis: round trips, how near the points are, the codebook, lanes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.transform import trellis_stream as module
from fedcompress.codecs.transform.codebook import CLASSES, DISTORTIONS, ESCAPE, LOG_STEP, LOWEST, OFFSETS, RATES, TABLES
from fedcompress.codecs.transform.trellis import (
    LAMBDA,
    MAX_CLASS,
    MAX_K,
    NEXT,
    QUANTIZER,
    SEGMENT,
    STATES,
    _costs,
    count_low_bits,
    find_table,
    points,
    search,
)
from fedcompress.codecs.transform.trellis_stream import Lanes, read_trellis_rows, write_trellis_rows

SIZES = st.lists(st.integers(0, 40) | st.integers(250, 530), max_size=6)
WILD = st.sampled_from(["fitting", "too-large", "too-small", "spikes", "beyond", "zeros"])


def deviation(cls: int) -> float:
    return float(2.0 ** (cls / LOG_STEP + LOWEST))


def coded(rows: list[np.ndarray], classes: list[int]) -> tuple[int, list[np.ndarray]]:
    writer, twin = Writer(), Writer()
    before = [r.copy() for r in rows]
    write_trellis_rows(writer, rows, classes)
    write_trellis_rows(twin, rows, classes)
    assert writer.getvalue() == twin.getvalue()
    assert all(np.array_equal(r, b) for r, b in zip(rows, before, strict=True))
    reader = Reader(writer.getvalue())
    found = read_trellis_rows(reader, [r.size for r in rows], classes)
    reader.finish()
    assert [f.dtype for f in found] == [np.dtype(np.float32)] * len(rows)
    return len(writer.getvalue()), found


@settings(max_examples=120, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 9999), wild=WILD, top=st.sampled_from([3, 15, 40, MAX_CLASS]))
def test_rows_round_trip(sizes: list[int], seed: int, wild: str, top: int) -> None:
    """Whatever the values, the reader makes what the search chose."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, top + 1, len(sizes)).tolist()
    rows = [deviation(c) * generator.standard_normal(n) for c, n in zip(classes, sizes, strict=True)]
    match wild:
        case "too-large":
            rows = [r * 1000 for r in rows]
        case "too-small":
            rows = [r / 1000 for r in rows]
        case "spikes":
            rows = [np.where(generator.random(r.size) < 0.05, 50 * r, r) for r in rows]
        case "beyond":
            rows = [r * 1e12 for r in rows]
        case "zeros":
            rows = [r * 0 for r in rows]
    _, found = coded(rows, classes)
    assert [f.size for f in found] == sizes
    lanes = Lanes.cut(sizes, classes)
    values = np.zeros((lanes.steps, lanes.row.size))
    for i in range(lanes.row.size):
        cut = rows[lanes.row[i]][lanes.start[i] : lanes.start[i] + lanes.length[i]]
        values[: cut.size, i] = cut
    path = search(np.clip(values, -2.0 * MAX_K, 2.0 * MAX_K), lanes.length, lanes.classes)
    expected = points(path.k, path.quantizer, lanes.classes)
    for i in range(lanes.row.size):
        mine = found[lanes.row[i]][lanes.start[i] : lanes.start[i] + lanes.length[i]]
        assert mine.tobytes() == expected[: mine.size, i].tobytes()
    if wild == "zeros":
        assert not any(f.any() for f in found)
    for row, value in zip(rows, found, strict=True):
        assert np.square(row - value).sum() <= np.square(row).sum() + 1e-9


@pytest.mark.parametrize("cls", [0, 1, 3, 6, 10, 15, 16, 21, 40])
def test_rate_and_distortion_are_those_of_the_codebook(cls: int) -> None:
    """On the source that a class is for."""
    size = 20 * SEGMENT
    row = deviation(cls) * np.random.default_rng(cls).standard_normal(size)
    written, (found,) = coded([row], [cls])
    table, shift = int(find_table(np.array(cls))), int(count_low_bits(np.array(cls)))
    # low bits are cut off towards zero, which makes the lowest cell twice as wide; the tables do not know
    assert 8 * written / size == pytest.approx(RATES[table] + shift, abs=0.3 if shift else 0.08)
    assert np.square(row - found).mean() == pytest.approx(DISTORTIONS[table], rel=0.15 if shift else 0.06)


def test_values_beyond_the_largest_magnitude() -> None:
    """They become the largest one; the parity of what is sent still leads both ends through the same states."""
    row = np.array([1e30, -1e30, 3.0, 1e12, 0.0, -(2.0**23)] * 50)
    _, (found,) = coded([row], [MAX_CLASS])
    assert np.abs(found).max() <= 2 * MAX_K
    assert (np.abs(found[np.abs(row) > 1e6]) > 2 * MAX_K - 16).all()
    assert np.abs(found - row)[np.abs(row) < 1e6].max() < 8


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 1000), max_size=8))
def test_lanes_cover_each_entry_once(sizes: list[int]) -> None:
    lanes = Lanes.cut(sizes, list(range(len(sizes))))
    seen = [np.zeros(n, np.int64) for n in sizes]
    for row, start, length, cls in zip(lanes.row, lanes.start, lanes.length, lanes.classes, strict=True):
        assert 0 < length <= SEGMENT
        assert start % SEGMENT == 0
        assert cls == row
        seen[row][start : start + length] += 1
    assert all((s == 1).all() for s in seen)
    assert (np.diff(lanes.length) <= 0).all(), "longest first"
    assert lanes.where().sum() == sum(sizes)
    assert (lanes.active() == lanes.where().sum(1)).all()
    keys = list(zip(-lanes.length, lanes.row, lanes.start, strict=True))
    assert keys == sorted(keys), "a stable order"


def test_classes_beyond_the_codebook_send_low_bits() -> None:
    classes = np.arange(MAX_CLASS + 1)
    shift, table = count_low_bits(classes), find_table(classes)
    assert ((table >= 0) & (table < CLASSES)).all()
    assert (table + LOG_STEP * shift == classes).all()
    assert (shift[:CLASSES] == 0).all()
    assert ((ESCAPE << shift) <= MAX_K).all()


def test_the_trellis_can_be_walked_back() -> None:
    """Two ways lead into each state, and the two quantizers leave it with either parity."""
    assert np.bincount(NEXT.ravel()).tolist() == [2] * STATES
    assert all(NEXT[s, 0] != NEXT[s, 1] for s in range(STATES))
    assert sorted(QUANTIZER) == [0] * 4 + [1] * 4


def test_the_codebook_is_exact_in_float32() -> None:
    assert (TABLES.sum(-1) < 1 << 24).all()
    assert (TABLES > 0).all()
    assert (np.rint(OFFSETS * 256) == OFFSETS * 256).all()
    assert not OFFSETS[:, :, 0].any(), "zero stays zero"
    top = np.array([MAX_K])
    assert points(top, np.array([0]), np.array([MAX_CLASS]))[0] == 2 * MAX_K
    assert points(-top, np.array([1]), np.array([MAX_CLASS]))[0] == 1 - 2 * MAX_K


def test_the_search_finds_the_best_path() -> None:
    """Cost over all paths of a short lane, by trying every one."""
    generator, costs = np.random.default_rng(0), _costs()
    for cls in (3, 8, 14):
        values = deviation(cls) * generator.standard_normal(4)
        path = search(values[:, None], np.array([4]), np.array([cls]))

        def cost(ks: tuple[int, ...], cls: int = cls, values: np.ndarray = values) -> float:
            state, total = 0, 0.0
            for k, value in zip(ks, np.abs(values), strict=True):
                q = QUANTIZER[state]
                total += (value - (2 * k - (q and k > 0))) ** 2 + LAMBDA * costs[cls, q, min(k, ESCAPE)]
                state = NEXT[state, k & 1]
            return total

        choices = [range(max(int(abs(v) / 2) - 2, 0), int(abs(v) / 2) + 4) for v in values]
        best = min(cost(ks) for ks in product(*[{0, *c} for c in choices]))
        assert cost(tuple(np.abs(path.k[:, 0]).tolist())) <= best + 1e-4


def test_all_lanes_start_in_state_0() -> None:
    """So that a row's first entry and its 257th are coded alike."""
    half = 3 * np.random.default_rng(0).standard_normal(SEGMENT)
    _, (found,) = coded([np.r_[half, half]], [10])
    assert (found[:SEGMENT] == found[SEGMENT:]).all()


def test_probabilities_are_those_of_the_tables() -> None:
    assert module._PROBABILITIES.shape == (2 * CLASSES, ESCAPE + 1)
    assert (module._PROBABILITIES[5] == TABLES[2, 1] / TABLES[2, 1].sum()).all()
