"""Computes statistics of stored tensors, and finds what in them is worth dropping."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcompress.adapters.groups import PREFIX
from fedcompress.adapters.safetensors_io import TensorSource
from fedcompress.chunks import TensorSlice
from fedcompress.types import DTYPES, Array, TensorSpec

CHUNK = 1 << 20  # entries that are widened to float64 at a time
DENSITY = 0.05  # share of entries that the ternary bound keeps
LARGE = 4.0  # heads with so many times the bytes of the factors are worth a note
# Heads that PEFT trains and saves by its task type; older versions did not say so in modules_to_save.
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
FACTORS = ("lora_a", "lora_b")  # the groups of LoRA's factors
EXAMPLES = 3  # names of tensors in a note


def sign_bits(density: float) -> float:
    """Compute the bits a parameter of a mask of density p and a sign for each entry that is kept: H(p) + p.

    >>> round(sign_bits(0.05), 4)
    0.3364
    """
    return density - density * math.log2(density) - (1 - density) * math.log2(1 - density)


@dataclass
class _GroupStatistics:
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    finite: int = 0  # values that are neither NaN nor infinite; the moments are of these
    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))  # sums of powers 1 to 4

    def add(self, values: Array) -> None:
        """Add finite values, float32 of shape (n,); the sums are float64."""
        wide = values.astype(np.float64)
        square = np.square(wide)
        self.finite += wide.size
        self.moments += [wide.sum(), square.sum(), wide @ square, square @ square]

    def kurtosis(self) -> float:
        """Compute the fourth central moment over the squared variance; 3 for Gaussian values, 0 for constant ones."""
        if not self.finite:
            return 0.0
        m1, m2, m3, m4 = (self.moments / self.finite).tolist()
        variance = m2 - m1**2
        if variance <= 1e-12 * m2:
            return 0.0
        return float((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2)

    def summarize(self) -> dict[str, Any]:
        """Return the row of a group: sizes, norm, kurtosis and the bytes of a ternary code."""
        return {
            "tensors": self.tensors,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "norm": math.sqrt(float(self.moments[1])),
            "kurtosis": self.kurtosis(),
            "ternary_bound_bytes": math.ceil(self.parameters * sign_bits(DENSITY) / 8),
        }


class SourceStatistics(Mapping[str, Array]):
    """Gives the tensors of a source by name; each is read, and enters the statistics, whenever it is asked for.

    So one pass over a file serves the digest of its state and the statistics. Ask for each tensor once.
    """

    def __init__(self, source: TensorSource, progress: Callable[[int, int], None]) -> None:
        self._source = source
        self._progress = progress
        self._groups: dict[str, _GroupStatistics] = defaultdict(_GroupStatistics)
        self._findings: dict[str, list[TensorSpec]] = defaultdict(list)  # code of a note -> tensors that it is about
        self._done = 0  # entries that were read

    def __len__(self) -> int:
        return len(self._source.layout.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.layout.by_name)

    def __getitem__(self, name: str) -> Array:
        spec = self._source.layout.by_name[name]
        values = self._source.read(TensorSlice(spec=spec))
        self._record(spec, values)
        self._done += spec.numel
        self._progress(self._done, self._source.layout.numel)
        return values

    @property
    def bytes(self) -> int:
        """Return the bytes of all tensors, as they are stored."""
        return sum(_stored_bytes(t) for t in self._source.layout.tensors)

    def groups(self) -> dict[str, dict[str, Any]]:
        """Return sizes and statistics of each group, by the group's name."""
        return {name: self._groups[name].summarize() for name in sorted(self._groups)}

    def notes(self) -> list[dict[str, Any]]:
        """List what is worth dropping, each with the tensors and bytes that it is about."""
        notes = [
            _build_note(code, text, self._findings[code])
            for code, text in (
                ("non-finite", "values are NaN or infinite: cannot be encoded"),
                ("zeros", "every value is 0: need not be stored"),
                ("bf16-in-fp32", "float32 copies of bfloat16 values: half of the bytes are zero"),
                ("empty", "no values: weights were not gathered before saving, as under ZeRO-3: of no use"),
                ("no-prefix", f"factors whose names do not begin with {PREFIX}: PEFT does not load them"),
                ("not-trainable", "neither a factor nor in modules_to_save: a saved copy of the base?"),
            )
            if self._findings[code]
        ]
        head = self._groups.get("head")
        factor_bytes = sum(self._groups[g].bytes for g in FACTORS if g in self._groups)
        if head is not None and factor_bytes and head.bytes > LARGE * factor_bytes:
            members = [t for t in self._source.layout.tensors if t.group == "head"]
            share = 100 * head.bytes / self.bytes
            notes.append(_build_note("large-heads", f"modules saved whole are {share:.0f} % of the bytes", members))
        return notes

    def _record(self, spec: TensorSpec, values: Array) -> None:
        """Take a tensor into the statistics of its group, and note what is odd about it."""
        group = self._groups[spec.group]
        group.tensors += 1
        group.parameters += spec.numel
        group.bytes += _stored_bytes(spec)
        flat = values.reshape(-1)
        is_zero = True
        is_bfloat16 = spec.dtype == "float32"  # the lower half of every word is zero
        has_non_finite = False
        for start in range(0, flat.size, CHUNK):
            chunk = flat[start : start + CHUNK]
            is_zero = is_zero and not chunk.any()
            is_bfloat16 = is_bfloat16 and not (chunk.view(np.uint32) & 0xFFFF).any()
            is_finite = np.isfinite(chunk)
            if not is_finite.all():
                has_non_finite = True
                chunk = chunk[is_finite]
            group.add(chunk)
        if flat.size and has_non_finite:
            self._findings["non-finite"].append(spec)
        if flat.size and is_zero:
            self._findings["zeros"].append(spec)
        if flat.size and is_bfloat16 and not is_zero:
            self._findings["bf16-in-fp32"].append(spec)
        if not flat.size and self._source.config is not None:
            self._findings["empty"].append(spec)
        if self._source.config is not None and spec.group in FACTORS and not spec.name.startswith(PREFIX):
            self._findings["no-prefix"].append(spec)
        if spec.group == "head" and not self._is_trainable(spec.name):
            self._findings["not-trainable"].append(spec)

    def _is_trainable(self, name: str) -> bool:
        """Return True if a tensor that is no factor has a reason to be in an adapter."""
        config = self._source.config or {}
        parts = name.split(".")
        saved_modules = [*(config.get("modules_to_save") or ()), *HEADS.get(str(config.get("task_type")), ())]
        # PEFT trains and saves a module whose name ends with an entry, as pre_classifier with classifier
        paths = [".".join(parts[:end]) for end in range(1, len(parts))]
        if config.get("bias", "none") != "none" and parts[-1] == "bias":
            return True
        is_saved = any(isinstance(m, str) and path.endswith(m) for m in saved_modules for path in paths)
        return is_saved or any(p.startswith("lora_") for p in parts) or "trainable_tokens" in name


def _stored_bytes(spec: TensorSpec) -> int:
    return spec.numel * DTYPES[spec.dtype]


def _build_note(code: str, text: str, members: list[TensorSpec]) -> dict[str, Any]:
    return {
        "code": code,
        "text": text,
        "tensors": len(members),
        "bytes": sum(_stored_bytes(t) for t in members),
        "examples": [t.name for t in members[:EXAMPLES]],
    }
