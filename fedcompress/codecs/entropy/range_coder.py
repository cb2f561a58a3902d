"""Wraps constriction's range coder in two small classes, and adds models whose counts adapt.

Words have 32 bits, little-endian. All models are built from integer counts by IEEE divisions, and constriction turns
them into fixed point without libm, so that decoding gives equal symbols on every machine.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import PayloadError

Symbols = NDArray[np.int32]
Probabilities = NDArray[np.float64]
# Model families: the probabilities are given with each symbol.
_FAMILY = constriction.stream.model.Categorical(perfect=False)
_BITS = constriction.stream.model.Bernoulli(perfect=False)
_INCREMENT = 32  # by what a symbol raises its count in an adaptive model


def bernoulli(count: int, size: int) -> Any:
    """Return the model of a bit that is 1 in ``count`` of ``size`` cases, ``0 < count < size``."""
    return constriction.stream.model.Bernoulli(count / size, perfect=False)


def categorical(counts: NDArray[Any]) -> Any:
    """Return the model of symbols that occur in these proportions, shape (alphabet,)."""
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False, lazy=False)


def weighted(probabilities: Probabilities) -> Any:
    """Return the model of symbols with these probabilities, shape (alphabet,), which need not add up to 1."""
    return constriction.stream.model.Categorical(probabilities, perfect=False, lazy=False)


class RangeWriter:
    """Appends symbols to one stream."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: NDArray[Any], model: Any) -> None:
        """Append symbols of one model."""
        self._coder.encode(np.ascontiguousarray(symbols, np.int32), model)

    def put_each(self, symbols: NDArray[Any], probabilities: Probabilities) -> None:
        """Append n symbols, each with its own row of probabilities, shape (n, alphabet)."""
        if len(symbols):
            self._coder.encode(np.ascontiguousarray(symbols, np.int32), _FAMILY, probabilities)

    def put_bits(self, bits: NDArray[np.bool_], odds: Probabilities) -> None:
        """Append n bits, each with its own probability of a 1, strictly between 0 and 1, shape (n,)."""
        if len(bits):
            self._coder.encode(np.ascontiguousarray(bits, np.int32), _BITS, odds)

    def getvalue(self) -> bytes:
        """Return the stream, a multiple of four bytes; it is empty if no symbol was put."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class RangeReader:
    """Reads what ``RangeWriter`` wrote; garbage decodes to garbage or raises ``PayloadError``, and never crashes."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise PayloadError(f"section: range stream: {len(data)} bytes: must be a multiple of 4")
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        self._untouched = len(data) > 0

    def get(self, model: Any, count: int) -> Symbols:
        """Read the next ``count`` symbols of one model."""
        return self._decode(model, count)

    def get_each(self, probabilities: Probabilities) -> Symbols:
        """Read n symbols, each with its own row of probabilities, shape (n, alphabet)."""
        return self._decode(_FAMILY, probabilities) if len(probabilities) else np.zeros(0, np.int32)

    def get_bits(self, odds: Probabilities) -> NDArray[np.bool_]:
        """Read n bits, each with its own probability of a 1, shape (n,)."""
        return self._decode(_BITS, odds).astype(np.bool_) if len(odds) else np.zeros(0, np.bool_)

    def _decode(self, *args: Any) -> Symbols:
        try:
            symbols: Symbols = np.asarray(self._coder.decode(*args), dtype=np.int32)
        except (AssertionError, ValueError) as error:
            raise PayloadError(f"section: range stream: {error}") from error
        self._untouched &= symbols.size == 0
        return symbols

    def finish(self) -> None:
        """Raise ``PayloadError`` if the stream goes on; a stream of no symbols must be empty."""
        if self._untouched or not self._coder.maybe_exhausted():
            raise PayloadError("section: range stream: goes on after the last symbol")


class Adaptive:
    """Models symbols by counts, which writer and reader raise alike after each call, by 32 for each symbol.

    Args:
        prior: the counts to begin with, each at least 1, shape (alphabet,). It is copied.
    """

    def __init__(self, prior: NDArray[np.int64]) -> None:
        self._counts = prior.copy()

    def put(self, writer: RangeWriter, symbols: NDArray[Any]) -> None:
        """Append symbols in ``[0, len(prior))``; all symbols of a call are coded by the counts before it."""
        writer.put(symbols, categorical(self._counts))
        self._learn(symbols)

    def get(self, reader: RangeReader, count: int) -> Symbols:
        """Read the ``count`` symbols that one call of ``put`` wrote."""
        symbols = reader.get(categorical(self._counts), count)
        self._learn(symbols)
        return symbols

    def _learn(self, symbols: NDArray[Any]) -> None:
        self._counts += _INCREMENT * np.bincount(symbols, minlength=self._counts.size)
