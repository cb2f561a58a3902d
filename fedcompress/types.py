"""Layouts and states are the two things that every part of the system shares.

A *state* or *update* is a ``dict`` from tensor name to a C-contiguous float32 numpy array. Its *layout* is the ordered
list of names, shapes, dtypes and groups. The receiver's own layout always decides shapes and sizes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError, LayoutError, NonFiniteError, StateError

Array = NDArray[np.float32]
Tensors = dict[str, Array]

# Bytes of one element by dtype of a trainable tensor. Values are handled as float32 whatever the dtype is.
DTYPES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# Groups of tensors. What an error in a value costs differs by group, so codecs are chosen by group.
GROUPS: tuple[str, ...] = ("lora_a", "lora_b", "head", "other")
MAX_TENSORS = 1_000_000  # tensors of a layout
MAX_NUMEL = 1 << 40  # elements of a tensor
MAX_DIMENSIONS = 32  # of a tensor; numpy has at most 64
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # names of runs and sites


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor spec describes one trainable tensor.

    Args:
        name: of the parameter, as PEFT or the model has it.
        shape: dimensions; empty for a scalar.
        dtype: of the parameter in training, a key of ``DTYPES``.
        group: one of ``GROUPS``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    group: str = "other"

    def __post_init__(self) -> None:
        if not self.name or any("\ud800" <= c <= "\udfff" for c in self.name):
            raise ConfigError("layout.name", repr(self.name[:80]), "must be text that is not empty")
        if self.dtype not in DTYPES:
            raise ConfigError(f"layout.{self.name}.dtype", self.dtype, f"one of {list(DTYPES)}")
        if self.group not in GROUPS:
            raise ConfigError(f"layout.{self.name}.group", self.group, f"one of {list(GROUPS)}")
        if len(self.shape) > MAX_DIMENSIONS:
            rule = f"at most {MAX_DIMENSIONS} dimensions"
            raise ConfigError(f"layout.{self.name[:80]}.shape", f"{len(self.shape)} dimensions", rule)
        if any(d < 0 for d in self.shape) or self.numel > MAX_NUMEL:
            raise ConfigError(f"layout.{self.name}.shape", self.shape, "dimensions >= 0, product <= 2^40")

    @property
    def numel(self) -> int:
        """Return the number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    def check(self, value: Array, *, what: str) -> None:
        """Raise ``LayoutError`` unless an array has this shape and is float32.

        Args:
            value: the array; its values are not looked at.
            what: the array belongs to; the error message begins with it.
        """
        if value.shape != self.shape or value.dtype != np.float32:
            rule = f"must be float32{list(self.shape)}"
            raise LayoutError(f"{what}: {self.name}: {value.dtype}{list(value.shape)}: {rule}")


@dataclass(frozen=True)
class Layout:
    """A layout is an ordered list of tensors; equal layouts have equal digests on every machine."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [t.name for t in self.tensors]
        if len(names) > MAX_TENSORS:
            raise LayoutError(f"layout: {len(names)} tensors: at most {MAX_TENSORS}")
        if len(set(names)) != len(names):
            repeated = sorted(name for name, count in Counter(names).items() if count > 1)
            raise LayoutError(f"layout: tensor named twice: {repeated[:3]}")

    @cached_property
    def by_name(self) -> Mapping[str, TensorSpec]:
        """Return the specs by name."""
        return {t.name: t for t in self.tensors}

    @cached_property
    def numel(self) -> int:
        """Return the number of elements in all tensors."""
        return sum(t.numel for t in self.tensors)

    def to_json(self) -> str:
        """Return the canonical JSON: compact, ASCII, a list of ``[name, shape, dtype, group]``."""
        rows = [[t.name, list(t.shape), t.dtype, t.group] for t in self.tensors]
        return json.dumps(rows, separators=(",", ":"), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Parse what ``to_json`` returns.

        Raises:
            LayoutError: the text is not a layout.
        """
        try:
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise TypeError(type(rows).__name__)
            return cls(tuple(_parse_spec(*row) for row in rows))
        except (ValueError, TypeError, RecursionError, ConfigError) as error:
            raise LayoutError(f"layout: not a list of [name, shape, dtype, group]: {error}") from error

    @cached_property
    def digest(self) -> bytes:
        """Return the SHA-256 of the canonical JSON, 32 bytes."""
        return hashlib.sha256(self.to_json().encode()).digest()

    def plain_bytes(self, bytes_per_element: int) -> int:
        """Return the bytes of all tensors uncompressed at the given width."""
        return self.numel * bytes_per_element

    def check(self, tensors: Mapping[str, Array], *, what: str) -> None:
        """Check that tensors have exactly this layout, are float32, and are finite.

        Args:
            tensors: arrays by name, in the order of the layout.
            what: the tensors are; error messages begin with it.

        Raises:
            LayoutError: a name, shape or dtype differs.
            NonFiniteError: a value is NaN or infinite.
        """
        self.check_names(tensors, what=what)
        for spec in self.tensors:
            value = tensors[spec.name]
            spec.check(value, what=what)
            if not np.isfinite(value).all():
                raise NonFiniteError(f"{what}: {spec.name}: contains NaN or infinity: all values must be finite")

    def check_shapes(self, tensors: Mapping[str, Array], *, what: str) -> None:
        """Check names, order, shapes and dtypes as ``check`` does, without a look at the values."""
        self.check_names(tensors, what=what)
        for spec in self.tensors:
            spec.check(tensors[spec.name], what=what)

    def check_names(self, tensors: Mapping[str, Array], *, what: str) -> None:
        """Raise ``LayoutError`` unless ``tensors`` has exactly these names, in this order."""
        if list(tensors) != [t.name for t in self.tensors]:
            missing = [t.name for t in self.tensors if t.name not in tensors]
            extra = [n for n in tensors if n not in self.by_name]
            raise LayoutError(f"{what}: names or order differ: missing {missing[:3]}, extra {extra[:3]}")


def _parse_spec(name: object, shape: object, dtype: object, group: object) -> TensorSpec:
    """Build a spec from a parsed row of a layout's JSON, or raise ``TypeError``."""
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(group, str) and isinstance(shape, list)):
        raise TypeError("must be a name, a list of dimensions, a dtype and a group")
    if not all(type(d) is int for d in shape):
        raise TypeError(f"{name}: dimensions must be integers")
    return TensorSpec(name=name, shape=tuple(shape), dtype=dtype, group=group)


def to_arrays(tensors: Mapping[str, Any]) -> Tensors:
    """Convert numpy arrays, or torch tensors of any float dtype and device, to C-contiguous arrays on the host.

    Torch tensors become float32; numpy arrays retain their dtype.
    """
    arrays = {}
    for name, value in tensors.items():
        array = value.detach().float().cpu().numpy() if hasattr(value, "detach") else value
        arrays[name] = np.ascontiguousarray(array).reshape(np.shape(array))
    return arrays


def zeros(layout: Layout) -> Tensors:
    """Make float32 tensors of a layout that are all zero."""
    return {t.name: np.zeros(t.shape, np.float32) for t in layout.tensors}


def add(left: Mapping[str, Array], right: Mapping[str, Array]) -> Tensors:
    """Add two states elementwise in float32.

    The result has the names and order of ``left``. Overflow gives infinity, without a warning.

    Raises:
        LayoutError: names or shapes differ.
    """
    check_alike("add", left, right)
    with np.errstate(over="ignore"):
        return {name: left[name] + right[name] for name in left}


def subtract(left: Mapping[str, Array], right: Mapping[str, Array]) -> Tensors:
    """Subtract two states elementwise in float32; the result has the names and order of ``left``.

    Raises:
        LayoutError: names or shapes differ.
    """
    check_alike("subtract", left, right)
    return {name: left[name] - right[name] for name in left}


def combine(states: Sequence[Mapping[str, Array]], weights: Sequence[float]) -> Tensors:
    """Compute the weighted sum ``sum_i weights_i * states_i`` elementwise in float64.

    Args:
        states: one or more states, of the same names and shapes.
        weights: one finite number for each, of either sign; they are not divided by their sum.

    Returns:
        The sum, float32, with the names and order of the first state.

    Raises:
        ConfigError: there is no state, or the weights are not one finite number for each.
        LayoutError: names or shapes differ.
    """
    if not states or len(weights) != len(states) or not all(math.isfinite(w) for w in weights):
        raise ConfigError("weights", list(weights), f"must be {len(states)} finite numbers, at least one")
    for state in states[1:]:
        check_alike("combine", states[0], state)
    sums = {}
    for name, first in states[0].items():
        total = np.zeros(first.shape)
        for weight, state in zip(weights, states, strict=True):
            total += weight * state[name].astype(np.float64)
        with np.errstate(over="ignore"):
            sums[name] = np.asarray(total, np.float32)
    return sums


def check_alike(what: str, left: Mapping[str, Array], right: Mapping[str, Array]) -> None:
    """Check that two states have the same names and shapes; the order may differ.

    Args:
        what: is done with them; the error message begins with it.
        left: one state.
        right: the other one.

    Raises:
        LayoutError: a name or a shape differs.
    """
    if left.keys() != right.keys():
        missing = [name for name in left if name not in right]
        extra = [name for name in right if name not in left]
        raise LayoutError(f"{what}: names differ: missing {missing[:3]}, extra {extra[:3]}")
    for name, value in left.items():
        if value.shape != right[name].shape:
            raise LayoutError(f"{what}: {name}: shape {list(right[name].shape)}: must be {list(value.shape)}")


def l2_norm(tensors: Iterable[Array]) -> float:
    """Compute the Euclidean norm over the entries of all tensors, in float64."""
    return math.sqrt(sum(float(np.square(t, dtype=np.float64).sum()) for t in tensors))


def to_bytes(tensors: Mapping[str, Array]) -> bytes:
    """Return the values of all tensors as little-endian float32, in order, without gaps."""
    return b"".join(np.ascontiguousarray(t, dtype="<f4").tobytes() for t in tensors.values())


def from_bytes(data: bytes, layout: Layout) -> Tensors:
    """Read tensors from bytes, the inverse of ``to_bytes``.

    Args:
        data: ``4 * layout.numel`` bytes.
        layout: names and shapes, in order.

    Raises:
        StateError: the number of bytes does not fit the layout.
    """
    if len(data) != 4 * layout.numel:
        raise StateError(f"state: {len(data)} bytes: the layout needs {4 * layout.numel}")
    flat = np.frombuffer(data, "<f4").astype(np.float32)
    start = 0
    tensors: Tensors = {}
    for spec in layout.tensors:
        tensors[spec.name] = flat[start : start + spec.numel].reshape(spec.shape)
        start += spec.numel
    return tensors


def state_digest(layout: Layout, tensors: Mapping[str, Array]) -> bytes:
    """Compute the SHA-256 over the layout digest and the little-endian float32 bytes of all tensors, in order.

    Negative zero is hashed as zero, so that equal values have equal digests.
    """
    sha = hashlib.sha256(b"fedcompress-state-v1" + layout.digest)
    for spec in layout.tensors:
        sha.update(np.ascontiguousarray(tensors[spec.name] + np.float32(0), dtype="<f4").tobytes())
    return sha.digest()
