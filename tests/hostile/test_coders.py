"""Every coder of the sections: cut, flipped, extended, and forged streams that say what cannot be."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs import CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Writer
from fedcompress.codecs.entropy import positions as mask_module
from fedcompress.codecs.entropy import signs as sign_module
from fedcompress.codecs.entropy.range_coder import RangeWriter, weighted
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.codecs.transform.rotation import PLAIN, ROTATED, Basis, _Models, write_bases
from fedcompress.codecs.transform.trellis import MAX_CLASS, MAX_K
from fedcompress.codecs.transform.trellis_stream import write_trellis_rows
from fedcompress.errors import PayloadError
from fedcompress.types import Layout, TensorSpec

LAYOUT = Layout(
    (
        TensorSpec(name="a", shape=(6, 50)),
        TensorSpec(name="b", shape=(50, 6)),
        TensorSpec(name="c", shape=(40,)),
        TensorSpec(name="d", shape=()),
        TensorSpec(name="e", shape=(0, 3)),
    )
)
TERNARY, WHOLE = CodecSpec.parse("topk(density=0.2)|ternary"), CodecSpec.parse("transform(lambda=0.001)")
MASKS: dict[int, Callable[[list[Support]], bytes]] = {
    mask_module.PACKED: mask_module._write_packed,
    mask_module.GAPS: mask_module._write_gaps,
    mask_module.COLUMNS: mask_module._write_columns,
}


def refused(section: bytes, layout: Layout = LAYOUT, codec: CodecSpec = WHOLE, match: str = "") -> None:
    with pytest.raises(PayloadError, match=match or None):
        decode_sections(codec, layout, (section,))


def sparse(mask: int, sign: int) -> bytes:
    """A section of sparse ternary by given coders."""
    generator = np.random.default_rng(mask)
    values = [generator.standard_normal(t.shape) for t in LAYOUT.tensors]
    for number in (0, 1):
        values[number] = np.outer(*(generator.standard_normal(n) for n in LAYOUT.tensors[number].shape))
    kept = [np.flatnonzero(np.abs(v.ravel()) > 0.7) for v in map(np.asarray, values)]
    places = [Support(t.shape, p) for t, p in zip(LAYOUT.tensors, kept, strict=True)]
    negative = [np.asarray(v).ravel()[p] < 0 for v, p in zip(values, kept, strict=True)]
    writer = Writer()
    writer.raw(bytes([2, mask]) + MASKS[mask](places))
    writer.raw(b"\x80\x3f" * sum(p.count > 0 for p in places))
    writer.u8(sign)
    if sign == sign_module.AGREEMENT:
        writer.stream(sign_module._write_agreement(negative, places))
    else:
        writer.raw(np.packbits(np.concatenate(negative)).tobytes())
    return writer.getvalue()


def transformed() -> bytes:
    """A section with a rotated, a plain and an empty tensor, low bits and escapes."""
    generator = np.random.default_rng(0)
    values = {
        "a": np.outer(generator.standard_normal(6), generator.standard_normal(50)).astype(np.float32),
        "b": np.where(generator.random((50, 6)) < 0.05, 40, generator.standard_normal((50, 6))).astype(np.float32),
        "c": 1000 * generator.standard_normal(40).astype(np.float32),
        "d": np.float32(1e-9) * np.ones((), np.float32),
        "e": np.zeros((0, 3), np.float32),
    }
    return encode_sections(WHOLE, LAYOUT, values)[0]


CASES: dict[str, tuple[CodecSpec, bytes]] = {
    **{f"mask-{mask}-sign-{sign}": (TERNARY, sparse(mask, sign)) for mask in MASKS for sign in (0, 1)},
    "transform": (WHOLE, transformed()),
}


@pytest.mark.parametrize("name", CASES)
def test_cut_at_every_byte_and_extended(name: str) -> None:
    codec, data = CASES[name]
    LAYOUT.check(decode_sections(codec, LAYOUT, (data,)), what="honest")
    for size in range(len(data)):
        refused(data[:size], codec=codec)
    for extra in (b"\0", b"\xff", b"\0" * 8, data):
        refused(data + extra, codec=codec)


@pytest.mark.parametrize("name", CASES)
def test_every_flipped_bit_is_refused_or_decodes_to_finite_tensors(name: str) -> None:
    codec, data = CASES[name]
    for at in range(len(data)):
        for bit in range(8):
            try:
                decoded = decode_sections(codec, LAYOUT, (data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :],))
            except PayloadError:
                continue
            LAYOUT.check(decoded, what="flipped")


@settings(max_examples=1500, deadline=None)
@given(
    name=st.sampled_from(sorted(CASES)),
    at=st.integers(0, 1 << 16),
    size=st.integers(0, 12),
    new=st.binary(max_size=16) | st.sampled_from([b"\0" * 40, b"\xff" * 40]),
)
def test_spliced_sections_are_refused_or_decode(name: str, at: int, size: int, new: bytes) -> None:
    codec, data = CASES[name]
    at %= len(data)
    try:
        decoded = decode_sections(codec, LAYOUT, (data[:at] + new + data[at + size :],))
    except PayloadError:
        return
    LAYOUT.check(decoded, what="spliced")


@settings(max_examples=500, deadline=None)
@given(step=st.floats(width=32), rest=st.binary(max_size=200))
def test_garbage_after_any_step(step: float, rest: bytes) -> None:
    try:
        decoded = decode_sections(WHOLE, LAYOUT, (b"\x02" + np.array(step, "<f4").tobytes() + rest,))
    except PayloadError:
        return
    LAYOUT.check(decoded, what="garbage")


# Masks and signs that lie

LINE = Layout((TensorSpec(name="w", shape=(10,)),))
NONE = CodecSpec.parse("topk(density=0.1)|none")


def gaps(count: int, symbols: list[int], size: int = 10) -> bytes:
    """A mask of given symbols, and as many values as it promises."""
    coder, writer = RangeWriter(), Writer()
    coder.put(np.array(symbols), weighted(mask_module._gap_model(count, size)[1]))
    writer.raw(bytes([2, mask_module.GAPS]))
    writer.varint(count)
    writer.stream(coder.getvalue())
    writer.raw(np.ones(count, "<f4").tobytes())
    return writer.getvalue()


def test_gaps() -> None:
    honest = gaps(2, [3, 4])
    (values,) = decode_sections(NONE, LINE, (honest,)).values()
    assert np.flatnonzero(values).tolist() == [3, 8]
    for symbols in ([3, 6], [9, 9], [15, 0, 0], [15] * 40):
        refused(gaps(2, symbols), LINE, NONE, "beyond 10")
    refused(gaps(2, [3, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]), LINE, NONE, "goes on")
    for count in (11, 1 << 40):
        refused(bytes([2, 2]) + honest[2:2] + varint(count) + honest[3:], LINE, NONE, "at most 10")
    for count in (0, 10):
        whole = bytes([2, 2, count, 0]) + np.ones(count, "<f4").tobytes()
        decode_sections(NONE, LINE, (whole,))
        refused(bytes([2, 2, count, 4]) + b"\xff" * 4 + whole[4:], LINE, NONE, "goes on")


def varint(value: int) -> bytes:
    writer = Writer()
    writer.varint(value)
    return writer.getvalue()


def test_gaps_that_never_end_cost_no_more_than_the_tensor() -> None:
    size = 1 << 20
    layout = Layout((TensorSpec(name="w", shape=(size,)),))
    refused(gaps(2, [255] * 9000, size), layout, NONE, f"beyond {size}")


@pytest.mark.parametrize("count", [1, 9])
def test_packed_masks_contradict_their_count(count: int) -> None:
    refused(bytes([2, 0, count, 2, 0xA0, 0]) + np.ones(count, "<f4").tobytes(), LINE, NONE, f"the count says {count}")


def test_columns_and_agreement_that_go_on() -> None:
    coder, writer = RangeWriter(), Writer()
    coder.put_bits(np.arange(10) == 3, np.full(10, 1 / 16))
    for extra, message in ((b"", ""), (b"\xff" * 8, "goes on"), (b"\0", "multiple of 4")):
        writer = Writer()
        writer.raw(bytes([2, mask_module.COLUMNS]))
        writer.stream(coder.getvalue() + extra)
        writer.raw(np.ones(1, "<f4").tobytes())
        if message:
            refused(writer.getvalue(), LINE, NONE, message)
        else:
            assert np.flatnonzero(decode_sections(NONE, LINE, (writer.getvalue(),))["w"]).tolist() == [3]
    dense = CodecSpec.parse("ternary")
    for extra, message in ((b"\xff" * 8, "goes on"), (b"\0" * 3, "multiple of 4")):
        signs = RangeWriter()
        signs.put_bits(np.ones(10, np.bool_), np.full(10, 0.5))
        data = signs.getvalue() + extra
        refused(b"\x02\x80\x3f\x01" + varint(len(data)) + data, LINE, dense, message)


# Transforms that lie

MATRIX = Layout((TensorSpec(name="w", shape=(4, 9)),))
STEP = np.array(0.5, "<f4").tobytes() + b"\0"  # and an exponent of 0


def bases(put: Put, rows: bytes = b"") -> bytes:
    """A section whose bases are what ``put`` writes."""
    coder, writer = RangeWriter(), Writer()
    put(coder, _Models())
    writer.raw(b"\x02" + STEP)
    writer.stream(coder.getvalue())
    writer.raw(rows)
    return writer.getvalue()


Put = Callable[[RangeWriter, _Models], None]


def rotated(first: int, following: list[int], vectors: list[tuple[int, list[int]]]) -> Put:
    def put(coder: RangeWriter, models: _Models) -> None:
        models.mode.put(coder, np.array([ROTATED]))
        models.first.put(coder, np.array([first]))
        for code in following:
            models.next.put(coder, np.array([code]))
        for bits, entries in vectors:
            models.vector(bits, 4).put(coder, np.array(entries) + (1 << bits))

    return put


def plain(codes: list[int]) -> Put:
    def put(coder: RangeWriter, models: _Models) -> None:
        models.mode.put(coder, np.array([PLAIN]))
        for code in codes:
            models.plain.put(coder, np.array([code]))

    return put


def rows_of(sizes: list[int], classes: list[int]) -> bytes:
    writer = Writer()
    write_trellis_rows(writer, [np.ones(n) for n in sizes], classes)
    return writer.getvalue()


def test_an_honest_forgery_decodes() -> None:
    decoded = decode_sections(WHOLE, MATRIX, (bases(rotated(5, [0], [(2, [1, 2, -3, 0])]), rows_of([9], [5])),))["w"]
    assert np.linalg.matrix_rank(decoded) == 1
    decoded = decode_sections(WHOLE, MATRIX, (bases(plain([0, 12, 0, 11]), rows_of([9, 9], [5, 5])),))["w"]
    assert decoded.any(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (rotated(0, [3, 0], []), "class is not from 0 to 60"),
        (rotated(MAX_CLASS, [1, 0], []), "goes on|singular vector is zero|left"),
        (rotated(MAX_CLASS, [3, 0], []), "goes on|singular vector is zero|left"),
        (rotated(MAX_CLASS, [2, 0], []), "class is not from 0 to 60"),
        (rotated(MAX_CLASS + 1, [0], []), "class is not from 0 to 60"),
        (rotated(40, [124, 0], []), "class is not from 0 to 60"),
        (rotated(5, [0], [(2, [0, 0, 0, 0])]), "singular vector is zero"),
        (rotated(5, [1, 0], [(2, [1, 0, 0, 0]), (2, [0, 0, 0, 0])]), "singular vector is zero"),
        (plain([0, 0, 0, 0]), "has no row"),
        (plain([1]), "class is not from 0 to 60"),
        (plain([122, 4]), "class is not from 0 to 60"),
        (plain([124]), "class is not from 0 to 60"),
    ],
)
def test_bases_that_lie(put: Put, message: str) -> None:
    refused(bases(put, b"\0" * 2), MATRIX, match=message)


def test_more_components_than_the_rank_or_the_side() -> None:
    codec = CodecSpec.parse("transform(lambda=0.1,rank=2)")
    vectors = [(2, [1, 2, -3, 0])] * 3
    refused(bases(rotated(5, [1, 1, 0], vectors), rows_of([9] * 3, [5] * 3)), MATRIX, codec, "more components than 2")
    # of as many as the side has, no end is sent
    four = bases(rotated(5, [1, 1, 1], [*vectors, (2, [0, 1, 0, 0])]), rows_of([9] * 4, [5] * 4))
    decode_sections(WHOLE, MATRIX, (four,))
    refused(four, MATRIX, codec, "more components than 2")
    refused(bases(rotated(5, [1] * 5, vectors)), MATRIX)


@pytest.mark.parametrize("side", [1, 1025])
def test_a_rotation_of_one_row_or_too_many(side: int) -> None:
    layout = Layout((TensorSpec(name="w", shape=(side, 1025)),))
    refused(bases(rotated(5, [0], [])), layout, match=f"small side of {side}: must be from 2 to 1024")


@pytest.mark.parametrize("put", [plain([0, 12, 0, 11]), rotated(5, [0], [(2, [1, 2, -3, 0])])])
def test_bases_that_go_on(put: Put) -> None:
    def more(coder: RangeWriter, models: _Models) -> None:
        put(coder, models)
        for _ in range(60):
            models.first.put(coder, np.array([7]))

    refused(bases(more, rows_of([9], [5])), MATRIX, match="goes on")


@pytest.mark.parametrize("step", [np.nan, -np.nan, np.inf, -np.inf, -1.0, -1e-45])
def test_steps_that_are_no_steps(step: float) -> None:
    honest = bases(plain([0, 12, 0, 11]), rows_of([9, 9], [5, 5]))
    refused(b"\x02" + np.array(step, "<f4").tobytes() + honest[5:], MATRIX, match="step")
    refused(b"\x02" + np.array(step, "<f4").tobytes(), MATRIX, match="step")


def test_a_step_of_zero_has_nothing_behind_it() -> None:
    assert not decode_sections(WHOLE, MATRIX, (b"\x02\0\0\0\0",))["w"].any()
    refused(b"\x02\0\0\0\0\0", MATRIX, match="left over")


@pytest.mark.parametrize("step", [3e38, 1e-45])
def test_steps_at_the_ends_of_the_range(step: float) -> None:
    honest = bases(rotated(MAX_CLASS, [0], [(7, [9, 2, -3, 0])]), rows_of([9], [MAX_CLASS]))
    section = b"\x02" + np.array(step, "<f4").tobytes() + honest[5:]
    codec = CodecSpec.parse("transform(lambda=0.1,head=0.001)")
    head = Layout((TensorSpec(name="w", shape=(4, 9), group="head"),))
    for layout in (MATRIX, head):
        try:
            decoded = decode_sections(codec, layout, (section,))
        except PayloadError:
            continue
        layout.check(decoded, what="decoded")


def escaping(extras: list[int], count: int | None = None, cls: int = 15) -> bytes:
    """One row of nine entries, two of them escaped, with given extras."""
    writer, row = Writer(), Writer()
    write_trellis_rows(row, [np.array([0, 0, 40.0, 0, 0, -50.0, 0, 0, 0])], [cls])
    data = row.getvalue()
    assert data[0] == 2
    writer.varint(len(extras) if count is None else count)
    for extra in extras:
        writer.varint(extra)
    writer.raw(data[3:])
    return bases(plain([32, 31, 0, 0]), writer.getvalue())


def test_escapes_that_lie() -> None:
    decode_sections(WHOLE, MATRIX, (escaping([4, 9]),))
    decode_sections(WHOLE, MATRIX, (escaping([MAX_K - 17, 0]),))
    for extras in ([MAX_K - 14, 0], [0, MAX_K], [(1 << 62), 1], [(1 << 63) - 1, (1 << 63) - 1]):
        refused(escaping(extras), MATRIX, match="escapes|goes on")
    for extras in ([], [4]):
        refused(escaping(extras), MATRIX, match="more are needed")
    for extras in ([4, 9, 1], [4] * 9):
        refused(escaping(extras), MATRIX, match="escapes")
    refused(escaping([4] * 10), MATRIX, match="there are 9 entries")
    refused(escaping([], count=1 << 62), MATRIX, match="there are 9 entries")
    refused(escaping([4], count=9), MATRIX)


def test_low_bits_with_padding() -> None:
    basis = Basis(MatrixView(4, 9, False), None, np.array([1]), [40])
    writer = Writer()
    writer.raw(b"\x02" + STEP)
    write_bases(writer, [basis])
    at = len(writer.getvalue())
    write_trellis_rows(writer, [np.ones(9) * 700], [40])
    data = writer.getvalue()
    decode_sections(WHOLE, MATRIX, (data,))
    last = at + (9 * 7 + 7) // 8 - 1
    refused(data[:last] + bytes([data[last] | 1]) + data[last + 1 :], MATRIX, match="padding")


# Memory

WIDE = Layout((TensorSpec(name="w", shape=(256, 256)),))


def all_rows(coder: RangeWriter, models: _Models) -> None:
    models.mode.put(coder, np.array([PLAIN]))
    for code in [40, *[0] * 255]:
        models.plain.put(coder, np.array([code]))


@pytest.mark.parametrize(
    "rows", [b"", b"\xff", varint(1 << 62), varint(1 << 16), b"\0" + varint(1 << 62), b"\0" + b"\x08" + b"\xff" * 8]
)
def test_claims_allocate_no_more_than_the_layout(rows: bytes) -> None:
    section = bases(all_rows, b"\0" * 8192 + rows)
    tracemalloc.start()
    try:
        refused(section, WIDE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 * WIDE.numel
