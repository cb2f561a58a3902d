"""The transform code: its slow twin, its budget, what it captures, and what its parts promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs import CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.transform.code import Transform
from fedcompress.codecs.transform.codebook import CLASSES, DISTORTIONS, LOG_STEP, LOWEST, RATES, TABLES
from fedcompress.codecs.transform.rotation import read_bases
from fedcompress.codecs.transform.trellis import MAX_CLASS, NEXT, QUANTIZER, points, search
from fedcompress.codecs.transform.trellis_stream import read_trellis_rows, write_trellis_rows
from fedcompress.types import Layout, Tensors, TensorSpec
from tests.support import equal
from tests.unit.codecs import transform_reference as reference

SHAPES = ((4, 30), (30, 4), (3, 270), (50,), (1, 40), (5, 5), (), (0, 3))
GROUPS = ("lora_a", "lora_b", "head", "other")
LAYOUT = Layout(
    tuple(TensorSpec(name=f"t{i}", shape=s, group=GROUPS[i % 4]) for i, s in enumerate(SHAPES)),
)


def low_rank(layout: Layout, seed: int, scale: float = 1.0) -> Tensors:
    """One strong direction a matrix, and noise."""
    draw, out = np.random.default_rng(seed), {}
    for spec in layout.tensors:
        value = draw.standard_normal(spec.shape)
        if len(spec.shape) == 2 and spec.numel:
            value += 4 * np.outer(draw.standard_normal(spec.shape[0]), draw.standard_normal(spec.shape[1]))
        out[spec.name] = np.asarray(value * scale, np.float32)
    return out


@pytest.mark.parametrize("scale", [1e-38, 1e-15, 1.0, 3e30])
@pytest.mark.parametrize("code", ["budget=0.7", "budget=2", "budget=6", "budget=14", "lambda=0.5", "budget=2,rank=1"])
def test_equals_the_slow_twin(code: str, scale: float) -> None:
    spec, values = CodecSpec.parse(f"transform({code})"), low_rank(LAYOUT, 3, scale)
    (section,) = encode_sections(spec, LAYOUT, values)
    decoded = decode_sections(spec, LAYOUT, [section])
    shapes = []
    for tensor in LAYOUT.tensors:
        rows = tensor.shape[0] if len(tensor.shape) > 1 and tensor.numel else 1
        columns = tensor.numel // rows
        shapes.append((min(rows, columns), max(rows, columns), 12.0 if tensor.group == "head" else 1.0))
    with np.errstate(under="ignore"):
        twin = reference.decode(section[1:], shapes)
    for tensor, matrix in zip(LAYOUT.tensors, twin, strict=True):
        ours = decoded[tensor.name]
        if len(tensor.shape) == 2 and tensor.shape[0] > tensor.shape[1]:
            ours = ours.T
        assert (ours.ravel() == np.array(matrix, np.float32).ravel()).all(), tensor.name


@pytest.mark.parametrize("lam", ["1e-60", "1e-12", "1e-3", "1", "1e3", "1e90"])
def test_any_lambda_decodes(lam: str) -> None:
    values, spec = low_rank(LAYOUT, 6), CodecSpec.parse(f"transform(lambda={lam})")
    values["t0"][0, 0] = 1e4
    decoded = decode_sections(spec, LAYOUT, encode_sections(spec, LAYOUT, values))
    error = sum(float(np.square(values[n] - decoded[n]).sum()) for n in values)
    norm = sum(float(np.square(v).sum()) for v in values.values())
    assert error <= (1e-8 if float(lam) < 1e-9 else 1.01) * norm


def test_saturated_magnitudes_keep_their_parity() -> None:
    """Beyond the largest k the search still takes what the state machine allows."""
    writer = Writer()
    write_trellis_rows(writer, [np.array([3e7, -2e7, 1.0, 9e6, 8.5e6])], [0])
    (decoded,) = read_trellis_rows(Reader(writer.getvalue()), [5], [0])
    assert np.abs(decoded[[0, 1, 3, 4]]).min() > 8e6
    assert abs(decoded[2] - 1) <= 3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), budget=st.floats(0.05, 12))
def test_budget_and_law(seed: int, budget: float) -> None:
    spec, values = CodecSpec.parse(f"transform(budget={budget},head=1)"), low_rank(LAYOUT, seed)
    sections = encode_sections(spec, LAYOUT, values)
    assert sections == encode_sections(spec, LAYOUT, values)
    assert 8 * (len(sections[0]) - 1) <= max(budget * LAYOUT.numel, 32)
    decoded = decode_sections(spec, LAYOUT, sections)
    error = sum(float(np.square(values[n].astype(np.float64) - decoded[n]).sum()) for n in values)
    assert error <= 1.01 * sum(float(np.square(v.astype(np.float64)).sum()) for v in values.values())


def test_a_budget_in_bytes() -> None:
    values = low_rank(LAYOUT, 0)
    for text, size in (("200B", 200), ("0.5KiB", 512), ("1000b", 1000)):
        (section,) = encode_sections(CodecSpec.parse(f"transform(budget={text})"), LAYOUT, values)
        assert 0.8 * size <= len(section) - 1 <= size


def test_more_bytes_capture_more() -> None:
    layout = Layout(tuple(TensorSpec(name=f"m{i}", shape=(16, 576), group="lora_a") for i in range(8)))
    values = low_rank(layout, 1)
    energy = sum(float(np.square(v).sum()) for v in values.values())
    shares = []
    for budget in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2):
        spec = CodecSpec.parse(f"transform(budget={budget})")
        decoded = decode_sections(spec, layout, encode_sections(spec, layout, values))
        shares.append(1 - sum(float(np.square(values[n] - decoded[n]).sum()) for n in values) / energy)
    assert shares == sorted(shares)
    assert shares[1] > 0.6  # the directions hold 16/17 of the energy in 1/16 of the numbers
    assert shares[-1] > 0.98


def test_a_head_is_coded_more_finely() -> None:
    values = low_rank(LAYOUT, 2)
    errors = []
    for head in (1, 30):
        spec = CodecSpec.parse(f"transform(budget=3,head={head})")
        decoded = decode_sections(spec, LAYOUT, encode_sections(spec, LAYOUT, values))
        errors.append(float(np.square(values["t2"] - decoded["t2"]).sum()))
    assert errors[1] < 0.35 * errors[0]


def test_components_are_bounded_by_rank() -> None:
    layout = Layout((TensorSpec(name="w", shape=(8, 200), group="lora_a"),))
    value = low_rank(layout, 0)["w"]
    value[:4] += 3 * np.random.default_rng(1).standard_normal((4, 2)) @ np.ones((2, 200), np.float32)
    sent = {}
    for rank in (2, 8):
        code = Transform(budget="1.5", rank=rank)
        reader = Reader(code.encode(layout.tensors, [value.astype(np.float32)]))
        reader.raw(4)  # the step
        reader.i8()  # the exponent
        (basis,) = read_bases(reader, layout.tensors, rank)
        assert basis.vectors is not None, "is rotated"
        sent[rank] = basis.vectors.shape[1]
    assert sent[2] == 2 < sent[8]


def test_equal_input_gives_equal_bytes_and_stays() -> None:
    values, spec = low_rank(LAYOUT, 4), CodecSpec.parse("transform(budget=2)")
    assert encode_sections(spec, LAYOUT, values) == encode_sections(spec, LAYOUT, low_rank(LAYOUT, 4))
    assert equal(values, low_rank(LAYOUT, 4))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.lists(st.tuples(st.integers(1, 600), st.integers(0, MAX_CLASS)), max_size=6),
)
def test_rows_round_trip(seed: int, rows: list[tuple[int, int]]) -> None:
    draw = np.random.default_rng(seed)
    classes = [c for _, c in rows]
    values = [draw.standard_normal(n) * 2 ** (LOWEST + c / LOG_STEP) for n, c in rows]
    writer = Writer()
    write_trellis_rows(writer, values, classes)
    reader = Reader(writer.getvalue())
    decoded = read_trellis_rows(reader, [n for n, _ in rows], classes)
    reader.finish()
    for value, got in zip(values, decoded, strict=True):
        assert np.abs(value - got).max() <= 2.6 + 1e-6 * np.abs(value).max()


def test_the_search_finds_the_best_path() -> None:
    """Against all paths of five entries with k from 0 to 2."""
    draw, costs = np.random.default_rng(5), np.log2(TABLES.sum(-1, keepdims=True) / TABLES)
    costs[..., 1:] += 1
    values = draw.standard_normal((5, 6)) * 1.2
    classes = np.full(6, 4)
    path = search(values, np.full(6, 5), classes)
    for lane in range(6):
        best = math.inf
        for code in range(3**5):
            state, total = 0, 0.0
            for i in range(5):
                k, q = code // 3**i % 3, int(QUANTIZER[state])
                point = 2 * k - (q if k else 0)
                total += (abs(values[i, lane]) - point) ** 2 + 0.28 * costs[4, q, k]
                state = int(NEXT[state, k % 2])
            best = min(best, total)
        got = 0.0
        for i in range(5):
            k, q = abs(int(path.k[i, lane])), int(path.quantizer[i, lane])
            got += (abs(values[i, lane]) - (2 * k - (q if k else 0))) ** 2 + 0.28 * costs[4, q, k]
        assert got <= best + 1e-4


@pytest.mark.parametrize("c", range(0, CLASSES, 3))
def test_the_codebook_is_what_it_says(c: int) -> None:
    """Rate and distortion on a Gaussian source, within 3 %."""
    draw = np.random.default_rng(c).standard_normal((256, 200)) * 2 ** (LOWEST + c / LOG_STEP)
    classes = np.full(200, c)
    path = search(draw, np.full(200, 256), classes)
    magnitude = np.minimum(np.abs(path.k), 16)
    bits = np.log2(32768 / TABLES[c, path.quantizer, magnitude]) + (magnitude > 0)
    error = np.square(points(path.k, path.quantizer, classes[None, :]) - draw)
    assert float(bits.mean()) == pytest.approx(RATES[c], rel=0.05, abs=0.03)
    assert float(error.mean()) == pytest.approx(DISTORTIONS[c], rel=0.05)
    assert (TABLES.sum(-1) == 32768).all()
    assert (TABLES >= 1).all()
