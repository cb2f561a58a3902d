"""Adds to the next update what a lossy code left out of the last one: error feedback.

Source: Seide et al. 2014; Karimireddy et al. 2019 (arXiv:1901.09847), algorithm 1.

Law: with decay 1, no warm-up and no reset, sum(decoded) + residual == sum(delta), up to float32 rounding, and up to
what a residual loses that is stored in fewer bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.sections import decode_sections, encode_sections
from fedcompress.codecs.spec import CodecSpec
from fedcompress.errors import ConfigError, StateError, WireError
from fedcompress.types import Array, Layout, Tensors, check_alike, subtract

STORES = ("none", "bf16", "int8")  # codecs that a residual may be stored by
_MAGIC = b"FCR1"
_AFTER_WARMUP = 1 << 30  # a round number that stands for any round without warm-up and reset


@dataclass(frozen=True, kw_only=True)
class ErrorFeedback:
    """Computes ``target = delta + decay * residual`` before encoding, and ``residual = target - decoded`` after it.

    The object has no state: the residual is the caller's, an argument and a result.

    Args:
        decay: the share of the residual that is added, from 0 to 1; 0 turns feedback off. SparseLoCo
            (arXiv:2508.15706) takes 0.95.
        warmup: rounds over which the decay grows to its value, in equal steps from 0: early residuals point where the
            model no longer is. 0 means none.
        reset: every so many rounds the residual is dropped; 0 means never. With partial participation a residual
            grows stale (Fed-EF, Li and Li 2023, arXiv:2211.14292, section 4).
        store: how the residual is kept on disk, one of ``STORES``.
    """

    decay: float = 1.0
    warmup: int = 0
    reset: int = 0
    store: str = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ConfigError("feedback.decay", self.decay, "must be from 0 to 1 (0: no feedback)")
        for name in ("warmup", "reset"):
            if getattr(self, name) < 0:
                raise ConfigError(f"feedback.{name}", getattr(self, name), "must be >= 0 rounds (0: none)")
        if self.store not in STORES:
            raise ConfigError("feedback.store", self.store, f"one of {list(STORES)}")

    def decay_at(self, round_: int) -> float:
        """Return the decay of a round, counted from 1: 0 at a reset, less than ``decay`` in the warm-up."""
        if self.reset and round_ % self.reset == 0:
            return 0.0
        return self.decay * min(1.0, round_ / (self.warmup + 1))

    def target(self, delta: Mapping[str, Array], residual: Mapping[str, Array], round_: int = _AFTER_WARMUP) -> Tensors:
        """Compute the update to encode, ``delta + decay * residual``.

        Args:
            delta: the update, float32, by tensor name.
            residual: what was left out so far, of the same names and shapes.
            round_: counted from 1; by default a round after any warm-up that is no reset.

        Returns:
            The target, float32. Overflow gives infinity without a warning; encoding refuses it.

        Raises:
            LayoutError: names or shapes differ.
        """
        check_alike("error feedback", delta, residual)
        decay = np.float32(self.decay_at(round_)) if round_ < _AFTER_WARMUP else np.float32(self.decay)
        with np.errstate(over="ignore"):
            return {name: delta[name] + decay * residual[name] for name in delta}

    def residual(self, target: Mapping[str, Array], decoded: Mapping[str, Array]) -> Tensors:
        """Return what the code left out, ``target - decoded``."""
        return subtract(target, decoded)


def pack_residual(residual: Mapping[str, Array], layout: Layout, store: str = "none") -> bytes:
    """Pack a residual for the disk; the bytes say themselves how it is stored.

    Args:
        residual: finite float32 tensors of the layout.
        layout: names and shapes.
        store: one of ``STORES``; all but ``none`` lose precision.

    Returns:
        Bytes for ``unpack_residual``.

    Raises:
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    writer = Writer()
    writer.raw(_MAGIC)
    writer.stream(store.encode())
    for section in encode_sections(CodecSpec.parse(store), layout, residual):
        writer.stream(section)
    return writer.getvalue()


def unpack_residual(data: bytes, layout: Layout) -> Tensors:
    """Unpack what ``pack_residual`` packed, up to what its store loses.

    Raises:
        StateError: the bytes are not a residual of this layout.
    """
    try:
        reader = Reader(data)
        if reader.raw(len(_MAGIC)) != _MAGIC:
            raise StateError("residual: is not one")
        store = reader.stream().decode()
        if store not in STORES:
            raise StateError(f"residual: store: {store!r}: one of {list(STORES)}")
        section = reader.stream()
        reader.finish()
        return decode_sections(CodecSpec.parse(store), layout, [section])
    except (WireError, UnicodeDecodeError) as error:
        raise StateError(f"residual: does not decode: {error}") from error
