"""A decoder written from protos/README.md alone, in plain Python: what another language would do."""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Iterator, Sequence

PRECISION = 24
TOTAL = 1 << PRECISION
MASK = (1 << 64) - 1


def bernoulli(count: int, size: int) -> list[int]:
    """Cumulative frequencies of a bit that is 1 in ``count`` of ``size`` cases."""
    return [0, math.floor((1 - count / size) * (TOTAL - 2)) + 1, TOTAL]


def categorical(histogram: Sequence[int]) -> list[int]:
    """Cumulative frequencies of an alphabet from the counts of its symbols."""
    count = sum(histogram)
    return weighted([c / count for c in histogram])


def weighted(probabilities: Sequence[float]) -> list[int]:
    """Cumulative frequencies of an alphabet from probabilities that need not add up to 1."""
    norm = 0.0
    for probability in probabilities:
        norm += probability
    scale = (TOTAL - len(probabilities)) / norm
    out, so_far = [0], 0.0
    for number, probability in enumerate(probabilities, start=1):
        so_far += probability
        out.append(math.floor(so_far * scale) + number)
    out[-1] = TOTAL
    return out


def gap_positions(decoder: RangeDecoder, count: int, size: int) -> list[int]:
    """Positions of ``count`` of ``size`` entries from geometric gaps."""
    alphabet = 4
    while alphabet < min(3 * size // count, 256):
        alphabet *= 2
    density = count / size
    tail = 1.0
    probabilities = []
    for _ in range(alphabet - 1):
        probabilities.append(tail * density)
        tail *= 1.0 - density
    model = weighted([*probabilities, tail])
    position = -1
    positions: list[int] = []
    while len(positions) < count:
        (symbol,) = decoder.symbols(model, 1)
        if symbol == alphabet - 1:
            position += alphabet - 1
        else:
            position += symbol + 1
            positions.append(position)
    return positions


class ColumnModel:
    """Bits of matrices by fading counts of the bits above them."""

    def __init__(self) -> None:
        self._ones = [1] * 12
        self._totals = [16] * 12

    def matrix(self, decoder: RangeDecoder, rows: int, columns: int) -> list[list[int]]:
        """The next matrix, row by row."""
        above, out = [0] * columns, []
        for _ in range(rows):
            contexts = [min(a >> 2, 11) for a in above]
            row = []
            for context in contexts:
                row += decoder.symbols(bernoulli(self._ones[context], self._totals[context]), 1)
            for context, bit in zip(contexts, row, strict=True):
                self._ones[context] += bit
                self._totals[context] += 1
            for context in range(12):
                while self._totals[context] > 4096:
                    self._totals[context] >>= 1
                    self._ones[context] >>= 1
                self._ones[context] = min(max(self._ones[context], 1), self._totals[context] - 1)
            above = [(13 * a >> 4) + 16 * bit for a, bit in zip(above, row, strict=True)]
            out.append(row)
        return out


class RangeDecoder:
    """64-bit state, 32-bit words, 24-bit frequencies."""

    def __init__(self, data: bytes) -> None:
        self._words = iter(int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4))
        self._lower = 0
        self._range = MASK
        self._point = 0
        for _ in range(2):
            self._point = self._point << 32 | next(self._words, 0)

    def symbols(self, cumulative: Sequence[int], count: int) -> Iterator[int]:
        """The next symbols."""
        for _ in range(count):
            step = self._range >> PRECISION
            place = ((self._point - self._lower) & MASK) // step
            symbol = bisect.bisect_right(cumulative, place) - 1
            if symbol >= len(cumulative) - 1:
                raise ValueError("no such symbol")
            self._lower = (self._lower + step * cumulative[symbol]) & MASK
            self._range = step * (cumulative[symbol + 1] - cumulative[symbol])
            if self._range < 1 << 32:
                self._lower = self._lower << 32 & MASK
                self._range = self._range << 32 & MASK
                self._point = (self._point << 32 | next(self._words, 0)) & MASK
            yield symbol

    def at_end(self) -> bool:
        """Whether the stream may end here."""
        return next(self._words, None) is None and (self._point - self._lower) & MASK < (1 << 33) - 1


def philox(key: int, count: int) -> list[int]:
    """The first 64-bit words of Philox4x64-10 with counters 1, 2, 3, ..."""
    out: list[int] = []
    counter = 0
    while len(out) < count:
        counter += 1
        x = [counter >> 64 * i & MASK for i in range(4)]
        k = [key & MASK, key >> 64]
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [p1 >> 64 ^ x[1] ^ k[0], p1 & MASK, p0 >> 64 ^ x[3] ^ k[1], p0 & MASK]
            k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
        out += x
    return out[:count]


def seeded_start(seed: int, name: str, count: int, columns: int) -> list[float]:
    """Values of a factor A before rounding to float32; each is an exact product of an integer and the bound."""
    import struct

    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    (bound,) = struct.unpack("<f", struct.pack("<f", 1 / math.sqrt(columns) / (1 << 24)))
    return [((word >> 40) * 2 - ((1 << 24) - 1)) * bound for word in philox(key, count)]
