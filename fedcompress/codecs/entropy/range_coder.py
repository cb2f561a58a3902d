"""Constriction's range coder behind two small classes, and counts that adapt.

Words are 32 bits, little-endian. All models are built from integer counts by IEEE
divisions, and constriction turns them into fixed point without libm, so decoding gives equal
symbols on every machine.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import PayloadError

Symbols = NDArray[np.int32]
Probabilities = NDArray[np.float64]
_FAMILY = constriction.stream.model.Categorical(perfect=False)
_BITS = constriction.stream.model.Bernoulli(perfect=False)


def bernoulli(count: int, size: int) -> Any:
    """Model of a bit that is 1 in ``count`` of ``size`` cases, ``0 < count < size``."""
    return constriction.stream.model.Bernoulli(count / size, perfect=False)


def categorical(counts: NDArray[Any]) -> Any:
    """Model of symbols that occur in these proportions."""
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False, lazy=False)


def weighted(probabilities: Probabilities) -> Any:
    """Model of symbols with these probabilities, which need not add up to 1."""
    return constriction.stream.model.Categorical(probabilities, perfect=False, lazy=False)


class RangeWriter:
    """Appends symbols to one stream."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: NDArray[Any], model: Any) -> None:
        """All symbols by one model."""
        self._coder.encode(np.ascontiguousarray(symbols, np.int32), model)

    def put_each(self, symbols: NDArray[Any], probabilities: Probabilities) -> None:
        """Each symbol by its own row of probabilities."""
        if len(symbols):
            self._coder.encode(np.ascontiguousarray(symbols, np.int32), _FAMILY, probabilities)

    def put_bits(self, bits: NDArray[np.bool_], odds: Probabilities) -> None:
        """Each bit by its own probability of a 1, strictly between 0 and 1."""
        if len(bits):
            self._coder.encode(np.ascontiguousarray(bits, np.int32), _BITS, odds)

    def getvalue(self) -> bytes:
        """The stream."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class RangeReader:
    """Reads what ``RangeWriter`` wrote; garbage decodes to garbage or to an error, never to a crash."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise PayloadError(f"section: range stream: {len(data)} bytes: must be a multiple of 4")
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        self._untouched = len(data) > 0

    def get(self, model: Any, count: int) -> Symbols:
        """The next ``count`` symbols of one model."""
        return self._decode(model, count)

    def get_each(self, probabilities: Probabilities) -> Symbols:
        """A symbol for each row of probabilities."""
        return self._decode(_FAMILY, probabilities) if len(probabilities) else np.zeros(0, np.int32)

    def get_bits(self, odds: Probabilities) -> NDArray[np.bool_]:
        """A bit for each probability."""
        return self._decode(_BITS, odds).astype(np.bool_) if len(odds) else np.zeros(0, np.bool_)

    def _decode(self, *args: Any) -> Symbols:
        try:
            symbols: Symbols = np.asarray(self._coder.decode(*args), dtype=np.int32)
        except (AssertionError, ValueError) as error:
            raise PayloadError(f"section: range stream: {error}") from error
        self._untouched &= symbols.size == 0
        return symbols

    def finish(self) -> None:
        """Raise if the stream goes on; one without symbols must be empty."""
        if self._untouched or not self._coder.maybe_exhausted():
            raise PayloadError("section: range stream: goes on after the last symbol")


class Adaptive:
    """A model whose counts both ends raise by 32 for each symbol, after each call.

    Args:
        prior: counts >= 1 to begin with.
    """

    def __init__(self, prior: NDArray[np.int64]) -> None:
        self._counts = prior.copy()

    def put(self, writer: RangeWriter, symbols: NDArray[Any]) -> None:
        """Append symbols in ``[0, len(prior))``."""
        writer.put(symbols, categorical(self._counts))
        self._learn(symbols)

    def get(self, reader: RangeReader, count: int) -> Symbols:
        """Inverse of ``put``."""
        symbols = reader.get(categorical(self._counts), count)
        self._learn(symbols)
        return symbols

    def _learn(self, symbols: NDArray[Any]) -> None:
        self._counts += 32 * np.bincount(symbols, minlength=self._counts.size)
