"""Statistics of stored tensors, and what in them is worth dropping."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcompress.adapters.safetensors_io import Source
from fedcompress.chunks import TensorSlice
from fedcompress.types import DTYPES, Array, TensorSpec

CHUNK = 1 << 20
DENSITY = 0.05
LARGE = 4.0  # heads with so many times the bytes of the factors are worth a note
FACTORS = ("lora_a", "lora_b")
EXAMPLES = 3


def sign_bits(density: float) -> float:
    """Bits a parameter of a mask of this density and a sign for each entry that is kept: H(p) + p.

    >>> round(sign_bits(0.05), 4)
    0.3364
    """
    return density - density * math.log2(density) - (1 - density) * math.log2(1 - density)


@dataclass
class _Group:
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    finite: int = 0
    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))  # sums of powers 1 to 4

    def kurtosis(self) -> float:
        """Fourth central moment over the squared variance; 3 for Gaussian values, 0 for constant ones."""
        if not self.finite:
            return 0.0
        m1, m2, m3, m4 = (self.moments / self.finite).tolist()
        variance = m2 - m1**2
        if variance <= 1e-12 * m2:
            return 0.0
        return float((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2)

    def facts(self) -> dict[str, Any]:
        """The row of a group."""
        return {
            "tensors": self.tensors,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "norm": math.sqrt(float(self.moments[1])),
            "kurtosis": self.kurtosis(),
            "ternary_bound_bytes": math.ceil(self.parameters * sign_bits(DENSITY) / 8),
        }


class Survey(Mapping[str, Array]):
    """The tensors of a source: each is read, and looked at, when it is asked for."""

    def __init__(self, source: Source, progress: Callable[[int, int], None]) -> None:
        self._source, self._progress = source, progress
        self._groups: dict[str, _Group] = defaultdict(_Group)
        self._odd: dict[str, list[TensorSpec]] = defaultdict(list)
        self._done = 0

    def __len__(self) -> int:
        return len(self._source.layout.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.layout.by_name)

    def __getitem__(self, name: str) -> Array:
        spec = self._source.layout.by_name[name]
        values = self._source.read(TensorSlice(spec=spec))
        self._look(spec, values)
        self._done += spec.numel
        self._progress(self._done, self._source.layout.numel)
        return values

    @property
    def bytes(self) -> int:
        """Of all tensors, as stored."""
        return sum(_size(t) for t in self._source.layout.tensors)

    def groups(self) -> dict[str, dict[str, Any]]:
        """Sizes and statistics of each group."""
        return {name: self._groups[name].facts() for name in sorted(self._groups)}

    def notes(self) -> list[dict[str, Any]]:
        """What is worth dropping, each with the bytes that it is about."""
        notes = [
            _note(code, text, self._odd[code])
            for code, text in (
                ("non-finite", "values are NaN or infinite: cannot be encoded"),
                ("zeros", "every value is 0: need not be stored"),
                ("bf16-in-fp32", "float32 copies of bfloat16 values: half of the bytes are zero"),
                ("not-trainable", "neither a factor nor in modules_to_save: a saved copy of the base?"),
            )
            if self._odd[code]
        ]
        head, factors = self._groups.get("head"), sum(self._groups[g].bytes for g in FACTORS if g in self._groups)
        if head is not None and factors and head.bytes > LARGE * factors:
            members = [t for t in self._source.layout.tensors if t.group == "head"]
            share = 100 * head.bytes / self.bytes
            notes.append(_note("large-heads", f"modules saved whole are {share:.0f} % of the bytes", members))
        return notes

    def _look(self, spec: TensorSpec, values: Array) -> None:
        group = self._groups[spec.group]
        group.tensors += 1
        group.parameters += spec.numel
        group.bytes += _size(spec)
        flat, zero, halves, broken = values.reshape(-1), True, spec.dtype == "float32", False
        for at in range(0, flat.size, CHUNK):
            part = flat[at : at + CHUNK]
            zero = zero and not part.any()
            halves = halves and not (part.view(np.uint32) & 0xFFFF).any()
            finite = np.isfinite(part)
            if not finite.all():
                broken, part = True, part[finite]
            wide = part.astype(np.float64)
            square = np.square(wide)
            group.finite += wide.size
            group.moments += [wide.sum(), square.sum(), wide @ square, square @ square]
        for code, found in (("non-finite", broken), ("zeros", zero), ("bf16-in-fp32", halves and not zero)):
            if found and flat.size:
                self._odd[code].append(spec)
        if spec.group == "head" and not self._is_trainable(spec.name):
            self._odd["not-trainable"].append(spec)

    def _is_trainable(self, name: str) -> bool:
        """Whether a tensor that is no factor has a reason to be in an adapter."""
        config = self._source.config or {}
        parts = name.split(".")
        saved = config.get("modules_to_save") or []
        if config.get("bias", "none") != "none" and parts[-1] == "bias":
            return True
        known = any(isinstance(m, str) and f".{m}." in f".{name}." for m in saved)
        return known or any(p.startswith("lora_") for p in parts) or "trainable_tokens" in name


def _size(spec: TensorSpec) -> int:
    return spec.numel * DTYPES[spec.dtype]


def _note(code: str, text: str, members: list[TensorSpec]) -> dict[str, Any]:
    return {
        "code": code,
        "text": text,
        "tensors": len(members),
        "bytes": sum(_size(t) for t in members),
        "examples": [t.name for t in members[:EXAMPLES]],
    }
