"""Error feedback: what a lossy code left out is added to the next update.

Source: Seide et al. 2014; Karimireddy et al. 2019 (arXiv:1901.09847), algorithm 1.
Law: with decay 1, no warm-up and no reset, sum(decoded) + residual == sum(delta), up to
float32 rounding, and to what a residual that is stored in fewer bits loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.sections import decode_sections, encode_sections
from fedcompress.codecs.spec import CodecSpec
from fedcompress.errors import ConfigError, StateError, WireError
from fedcompress.types import Array, Layout, Tensors, subtract

STORES = ("none", "bf16", "int8")
_MAGIC = b"FCR1"


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """``target = delta + decay * residual``; afterwards ``residual = target - decoded``.

    The residual is the caller's, an argument and a result.

    Args:
        decay: what is kept of the residual; 0 turns feedback off. SparseLoCo
            (arXiv:2508.15706) takes 0.95.
        warmup: rounds over which the decay grows to its value, in equal steps from 0: early
            residuals point where the model no longer is.
        reset: every so many rounds the residual is dropped; 0 is never. With partial
            participation a residual grows stale (Fed-EF, Li and Li 2023, arXiv:2211.14292, section 4).
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
        """The decay of a round, counted from 1."""
        if self.reset and round_ % self.reset == 0:
            return 0.0
        return self.decay * min(1.0, round_ / (self.warmup + 1))

    def target(self, delta: Mapping[str, Array], residual: Mapping[str, Array], round_: int = 1 << 30) -> Tensors:
        """What to encode, float32; by default after any warm-up. Overflow gives infinity, which encoding refuses."""
        decay = np.float32(self.decay_at(round_)) if round_ < 1 << 30 else np.float32(self.decay)
        with np.errstate(over="ignore"):
            return {name: delta[name] + decay * residual[name] for name in delta}

    def residual(self, target: Mapping[str, Array], decoded: Mapping[str, Array]) -> Tensors:
        """What the code left out of ``target``."""
        return subtract(target, decoded)


def pack_residual(residual: Mapping[str, Array], layout: Layout, store: str = "none") -> bytes:
    """A residual for the disk; says itself how it is stored.

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
    """Inverse of ``pack_residual``, up to what its store loses.

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
