"""A decoder of the transform code in plain Python, one symbol and one float at a time."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from fedcompress.codecs.transform.codebook import OFFSETS, TABLES
from tests.unit.codecs.codec_reference import f32
from tests.unit.codecs.range_reference import RangeDecoder, categorical, weighted

NEXT = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))


class Bytes:
    """A cursor."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        self._at += size
        assert self._at <= len(self._data)
        return self._data[self._at - size : self._at]

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.take(1)[0]) >= 0x80:
            value, shift = value | (byte & 0x7F) << shift, shift + 7
        return value | byte << shift

    def stream(self) -> bytes:
        return self.take(self.varint())

    def packed(self, count: int, bits: int) -> list[int]:
        data = self.take((count * bits + 7) // 8)
        digits = "".join(f"{byte:08b}" for byte in data)
        return [int(digits[i * bits : (i + 1) * bits], 2) for i in range(count)]

    def at_end(self) -> bool:
        return self._at == len(self._data)


class Counts:
    """An adaptive model."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts

    def read(self, decoder: RangeDecoder, count: int) -> list[int]:
        symbols = list(decoder.symbols(categorical(self._counts), count))
        for symbol in symbols:
            self._counts[symbol] += 32
        return symbols


def zigzag(code: int) -> int:
    return code // 2 if code % 2 == 0 else -(code + 1) // 2


def vector_counts(width: int, side: int) -> list[int]:
    reach = max((5 << width) // (1 << side.bit_length() // 2), 2)
    places = [min(abs(i - (1 << width)), reach) for i in range((2 << width) + 1)]
    return [1 + 64 * (reach * reach - d * d) ** 2 // reach**4 for d in places]


def bases(data: bytes, shapes: list[tuple[int, int]]) -> Iterator[tuple[int, list[int], list[list[int]] | list[int]]]:
    """Mode, classes, and vectors (rotated) or rows (plain) of each matrix of (side, columns)."""
    decoder = RangeDecoder(data)
    mode, first = Counts([32] * 3), Counts([4] * 62)
    following, plain = (Counts([max(256 >> min(i, 30), 1) for i in range(125)]) for _ in range(2))
    vectors: dict[tuple[int, int], Counts] = {}
    for side, columns in shapes:
        kind = mode.read(decoder, 1)[0] if side * columns else 0
        if kind == 0:
            yield 0, [], []
        elif kind == 1:
            classes = first.read(decoder, 1)
            while len(classes) < side and (code := following.read(decoder, 1)[0]):
                classes.append(classes[-1] - zigzag(code - 1))
            found = []
            for c in classes:
                wanted = (2 * columns.bit_length() + c - 5) // 4
                width = min(max(wanted, (side.bit_length() + 1) // 2), 12)
                key = (width, side.bit_length())
                model = vectors.setdefault(key, Counts(vector_counts(width, side)))
                found.append([s - (1 << width) for s in model.read(decoder, side)])
            yield 1, classes, found
        else:
            states, last = [], 0
            for _ in range(side):
                last += zigzag(plain.read(decoder, 1)[0])
                states.append(last)
            yield 2, [s - 1 for s in states if s], [i for i, s in enumerate(states) if s]
    assert decoder.at_end()


def rows(cursor: Bytes, sizes: list[int], classes: list[int]) -> list[list[float]]:
    """Points of each row."""
    lanes = [(r, at, min(256, n - at)) for r, n in enumerate(sizes) for at in range(0, n, 256)]
    lanes.sort(key=lambda lane: -lane[2])
    shifts = [max(-((15 - classes[r]) // 4), 0) for r, _, _ in lanes]
    low = {}
    for width in sorted({h for h in shifts if h}):
        inside = [(i, j) for i, lane in enumerate(lanes) if shifts[i] == width for j in range(lane[2])]
        low |= dict(zip(inside, cursor.packed(len(inside), width), strict=True))
    escapes = iter([cursor.varint() for _ in range(cursor.varint())])
    decoder = RangeDecoder(cursor.stream())
    states, found = [0] * len(lanes), {}
    for j in range(max((n for _, _, n in lanes), default=0)):
        for i, (r, _, length) in enumerate(lanes):
            if j < length:
                quantizer, table = states[i] % 2, classes[r] - 4 * shifts[i]
                model = weighted([int(n) / 32768 for n in TABLES[table][quantizer]])
                (high,) = decoder.symbols(model, 1)
                high += next(escapes) if high == 16 else 0
                k = high << shifts[i] | low.get((i, j), 0)
                found[i, j] = k, quantizer
                states[i] = NEXT[states[i]][k % 2]
    assert decoder.at_end()
    assert next(escapes, None) is None
    ordered = sorted((j, i) for (i, j), (k, _) in found.items() if k)
    minus = {(i, j) for (j, i), bit in zip(ordered, cursor.packed(len(ordered), 1), strict=True) if bit}
    out = [[0.0] * n for n in sizes]
    for (i, j), (k, quantizer) in found.items():
        r, at, _ = lanes[i]
        offset = float(OFFSETS[classes[r]][quantizer][min(k, 2)]) if not shifts[i] else 0.0
        value = f32(float(2 * k - quantizer if k else 0) + offset)
        out[r][at + j] = -value if (i, j) in minus else value
    return out


def decode(section: bytes, shapes: list[tuple[int, int, float]]) -> list[list[list[float]]]:
    """Matrices of (side, columns, weight) from a section's body, not turned back."""
    cursor = Bytes(section)
    (step,) = struct.unpack("<f", cursor.take(4))
    if step == 0:
        assert cursor.at_end()
        return [[[0.0] * n for _ in range(side)] for side, n, _ in shapes]
    (exponent,) = struct.unpack("<b", cursor.take(1))
    found = list(bases(cursor.stream(), [(side, n) for side, n, _ in shapes]))
    sizes = [n for (_, n, _), (_, classes, _) in zip(shapes, found, strict=True) for _ in classes]
    points = iter(rows(cursor, sizes, [c for _, classes, _ in found for c in classes]))
    assert cursor.at_end()
    out = []
    for (side, columns, weight), (mode, classes, what) in zip(shapes, found, strict=True):
        total = [[0.0] * columns for _ in range(side)]
        for number, _ in enumerate(classes):
            row, own = next(points), step / math.sqrt(weight)
            if mode == 1:
                vector = what[number]
                own = f32(own / math.sqrt(sum(v * v for v in vector)))
                scaled = [f32(p * own) for p in row]
                for i, entry in enumerate(vector):
                    total[i] = [f32(t + f32(entry * p)) for t, p in zip(total[i], scaled, strict=True)]
            else:
                total[what[number]] = [f32(p * f32(own)) for p in row]
        out.append([[f32(math.ldexp(t, exponent)) for t in row] for row in total])
    return out
