"""The coded form of a part says what a decoder does with what the codec gives it, before it has the tensors.

Three things are in it. Tensors whose error cannot be judged are *exact*: they are in a section of their own, in their
own dtype. Values that mean no change at *one* are coded as their distance from it. Factors of a product are coded in
powers of two of a component, so that an error counts as it does in the product; multiplying by these is exact.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedcompress.adapters.folder import from_float32, to_float32
from fedcompress.errors import PayloadError
from fedcompress.types import DTYPES, Array, Layout, Tensors, TensorSpec

MAX_EXPONENT = 120  # of two, either way; float32 has normal numbers to 126
WHOLE = -1  # axis of an exponent that is for all of a tensor
KEYS = ("exact", "ones", "exponents")  # of the manifest


@dataclass(frozen=True, kw_only=True)
class Exponents:
    """Exponents of two that a tensor was multiplied by: one for each index of an axis, or one for all of it."""

    axis: int
    values: tuple[int, ...]

    def factors(self, shape: Sequence[int], *, invert: bool) -> Array:
        """Return the powers of two, float32, of a shape that broadcasts to ``shape``."""
        exponents = np.array(self.values, np.int32)
        powers = np.ldexp(np.float32(1), -exponents if invert else exponents)
        if self.axis == WHOLE:
            return powers.reshape(())
        return powers.reshape([-1 if i == self.axis else 1 for i in range(len(shape))])


@dataclass(frozen=True, kw_only=True)
class CodedForm:
    """Says by name how tensors of a part are coded; all others are coded as they are.

    Args:
        exact: tensors that the codec does not see.
        ones: tensors that are coded as their distance from 1.
        exponents: of the powers of two that tensors are multiplied by before they are coded.
    """

    exact: frozenset[str] = frozenset()
    ones: frozenset[str] = frozenset()
    exponents: Mapping[str, Exponents] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Return True if all tensors are coded as they are."""
        return not (self.exact or self.ones or self.exponents)

    def coded_layout(self, layout: Layout) -> Layout:
        """Return the layout of what the codec sees."""
        return Layout(tuple(t for t in layout.tensors if t.name not in self.exact))

    def apply(self, values: Mapping[str, Array]) -> Tensors:
        """Return what the codec is given for the tensors that it sees; the inverse of ``restore``."""
        coded: Tensors = {}
        for name, value in values.items():
            if name in self.ones:
                coded[name] = value - np.float32(1)
            elif name in self.exponents:
                with np.errstate(over="ignore"):  # the codec refuses infinity
                    coded[name] = value * self.exponents[name].factors(value.shape, invert=False)
            elif name not in self.exact:
                coded[name] = value
        return coded

    def restore(self, layout: Layout, coded: Mapping[str, Array], exact: Mapping[str, Array]) -> Tensors:
        """Return the tensors of a part.

        Args:
            layout: of the part.
            coded: what the codec decodes to, float32 by name.
            exact: the tensors that it does not see, float32 by name.

        Returns:
            Finite float32 arrays in the order of the layout.

        Raises:
            PayloadError: a value is NaN or infinite.
        """
        tensors: Tensors = {}
        for name in (t.name for t in layout.tensors):
            value = exact[name] if name in self.exact else coded[name]
            with np.errstate(over="ignore", under="ignore"):
                if name in self.ones:
                    value = value + np.float32(1)
                elif name in self.exponents:
                    value = value * self.exponents[name].factors(value.shape, invert=True)
            if not np.isfinite(value).all():
                raise PayloadError(f"section: {name}: contains NaN or infinity: all values must be finite")
            tensors[name] = value
        return tensors

    def to_entries(self, layout: Layout) -> dict[str, Any]:
        """Return the entries of the manifest's JSON; tensors are named by their number in the layout."""
        numbers = {t.name: i for i, t in enumerate(layout.tensors)}
        entries: dict[str, Any] = {
            "exact": sorted(numbers[n] for n in self.exact),
            "ones": sorted(numbers[n] for n in self.ones),
            "exponents": sorted([numbers[n], e.axis, list(e.values)] for n, e in self.exponents.items()),
        }
        return {key: value for key, value in entries.items() if value}


def parse_form(entries: Mapping[str, Any], layout: Layout) -> CodedForm:
    """Parse what ``CodedForm.to_entries`` makes, from the JSON of a manifest.

    Raises:
        ValueError: an entry is not as specified.
        TypeError: an entry is of another type.
    """
    exact = _parse_names(entries, "exact", layout)
    ones = _parse_names(entries, "ones", layout)
    exponents: dict[str, Exponents] = {}
    for number, axis, values in entries.get("exponents", []):
        spec = _find_spec(number, "exponents", layout)
        if type(axis) is not int or not WHOLE <= axis < len(spec.shape):
            raise ValueError(f"exponents: axis {axis}: must be one of {spec.name}")
        count = 1 if axis == WHOLE else spec.shape[axis]
        is_valid = all(type(v) is int and abs(v) <= MAX_EXPONENT for v in values)
        if len(values) != count or not is_valid or spec.name in exponents:
            raise ValueError(f"exponents: {spec.name}: must be {count} integers within {MAX_EXPONENT}, once")
        exponents[spec.name] = Exponents(axis=axis, values=tuple(values))
    if exact & ones or exact & exponents.keys() or ones & exponents.keys():
        raise ValueError("exact, ones, exponents: a tensor may be in one of them")
    return CodedForm(exact=exact, ones=ones, exponents=exponents)


def _parse_names(entries: Mapping[str, Any], key: str, layout: Layout) -> frozenset[str]:
    numbers = entries.get(key, [])
    names = frozenset(_find_spec(number, key, layout).name for number in numbers)
    if len(names) != len(numbers):
        raise ValueError(f"{key}: a tensor is named twice")
    return names


def _find_spec(number: object, key: str, layout: Layout) -> TensorSpec:
    if type(number) is not int or not 0 <= number < len(layout.tensors):
        raise ValueError(f"{key}: {number}: must be the number of a tensor")
    return layout.tensors[number]


def write_exact(layout: Layout, names: frozenset[str], values: Mapping[str, Array]) -> bytes:
    """Write a section of tensors in their own dtypes: their bytes, the first of all entries first, deflated.

    Args:
        layout: of the part; it gives order and dtypes.
        names: the tensors to write.
        values: float32 by name, which their dtypes hold exactly.

    Returns:
        A zlib stream.
    """
    deflater = zlib.compressobj(6)
    pieces = []
    for spec in (t for t in layout.tensors if t.name in names):
        stored = from_float32(values[spec.name], spec.dtype)
        planes = np.ascontiguousarray(stored.reshape(-1).view(np.uint8).reshape(-1, DTYPES[spec.dtype]).T)
        pieces.append(deflater.compress(planes.data if planes.size else b""))
    return b"".join([*pieces, deflater.flush()])


def read_exact(layout: Layout, names: frozenset[str], section: bytes) -> Tensors:
    """Read what ``write_exact`` has written.

    Args:
        layout: of the part.
        names: the tensors that were written.
        section: the zlib stream.

    Returns:
        Float32 arrays by name.

    Raises:
        PayloadError: the section is malformed; no more is inflated than the tensors have.
    """
    specs = [t for t in layout.tensors if t.name in names]
    sizes = [t.numel * DTYPES[t.dtype] for t in specs]
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(section, sum(sizes) + 1)
    except zlib.error as error:
        raise PayloadError(f"section: exact: not a zlib stream: {error}") from error
    if len(data) != sum(sizes) or not inflater.eof or inflater.unused_data:
        raise PayloadError(f"section: exact: must be a zlib stream of {sum(sizes)} bytes")
    tensors: Tensors = {}
    start = 0
    for spec, size in zip(specs, sizes, strict=True):
        planes = np.frombuffer(data, np.uint8, size, start).reshape(DTYPES[spec.dtype], math.prod(spec.shape))
        tensors[spec.name] = to_float32(planes.T.tobytes(), spec.dtype).reshape(spec.shape)
        start += size
    return tensors
