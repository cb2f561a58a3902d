"""Transform code: singular components of each tensor, given bits by reverse water-filling.

A matrix, turned so that it has fewer rows than columns, is rotated on its small side by the
singular vectors of its own Gram matrix; the rotation is rounded and sent, and every rotated
row is quantized with one and the same step by ``trellis``. Rows that are too weak to be worth
their bits are left out. With one step for the whole update, bits go where energy is: on
Gaussian rows that is reverse water-filling (Cover and Thomas, section 10.3.3). Updates of LoRA
factors after short rounds of Adam have a few strong components and look Gaussian inside
them, which is why this carries several times the energy of sparse ternary at equal bytes.

We know of no publication of this for federated updates. Nearest are PowerSGD (Vogels et al.
2019, arXiv:1905.13727), which sends factors unquantized, and Delta-CoMe (Ping et al. 2024,
arXiv:2406.08903), which gives singular vectors of stored deltas fixed widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import NO_HINTS, EncoderHints, safe_exponent, saturate
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.transform.bit_allocation import Budget, Plan, Spectrum, spectrum_of
from fedcompress.codecs.transform.rotation import Basis, read_bases, rotate, write_bases
from fedcompress.codecs.transform.trellis import LAMBDA
from fedcompress.codecs.transform.trellis_stream import read_rows, write_rows
from fedcompress.errors import ConfigError, PayloadError
from fedcompress.types import Array, TensorSpec

TRIES, ENOUGH = 5, 0.96  # encodings for a budget, until this share of it is used
_UNITS = {"b": 1, "kib": 1 << 10, "mib": 1 << 20}


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Quantized, entropy-coded singular components under one step.

    Give one of:
      budget: at most so many bits a parameter (``0.25``), or bytes (``64KiB``, ``1000B``), headers
        of the envelope not counted. An update that is exhausted sooner takes less.
      lambda: squared error, as a share of the update's mean square, that is worth one bit; 0.1 is
        fine, 1 coarse. Bytes follow from the update.

    ``head`` weighs the squared error of tensors of group ``head``: a classifier learnt from zero
    suffers far more from errors than factors do. ``rank`` bounds the components of a tensor.

    Law: squared error <= 1.01 times the squared norm; at most ``budget``.
    """

    name: ClassVar[str] = "transform"
    uses_previous_update: ClassVar[bool] = False
    budget: str = ""
    lambda_: float = 0.0
    head: float = 12.0
    rank: int = 64

    def __post_init__(self) -> None:
        if bool(self.budget) == bool(self.lambda_):
            raise ConfigError("codec.transform", "budget, lambda", "needs one of them, as transform(budget=0.25)")
        if self.budget:
            self.bits(1)
        elif not 0 < self.lambda_ < math.inf:
            raise ConfigError("codec.transform.lambda", self.lambda_, "must be above 0")
        if not 0.001 <= self.head <= 1e6:
            raise ConfigError("codec.transform.head", self.head, "must be from 0.001 to 1e6")
        if not 1 <= self.rank <= 4096:
            raise ConfigError("codec.transform.rank", self.rank, "must be from 1 to 4096")

    def bits(self, parameters: int) -> float:
        """The budget in bits for an update of so many parameters."""
        text = self.budget.strip().lower()
        unit = next((u for u in ("kib", "mib", "b") if text.endswith(u)), "")
        try:
            number = float(text.removesuffix(unit))
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            rule = "must be bits a parameter (0.25) or a size (1000B, 64KiB, 2MiB), above 0"
            raise ConfigError("codec.transform.budget", self.budget, rule)
        return number * 8 * _UNITS[unit] if unit else number * parameters

    def weight(self, member: TensorSpec) -> float:
        """What the squared error of a tensor counts."""
        return self.head if member.group == "head" else 1.0

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """The section's body. Equal input gives equal bytes on one machine and thread count."""
        exponent = safe_exponent(values)
        values = values if exponent == 0 else [saturate(v, -exponent) for v in values]
        spectra = [spectrum_of(v, self.weight(m)) for m, v in zip(members, values, strict=True)]
        parameters = sum(v.size for v in values)
        energy = sum(float(s.rows.sum()) * s.weight for s in spectra)
        if energy == 0:
            return _written(spectra, values, [], 0.0, 0)
        plans = Budget(spectra, self.rank)
        if self.lambda_:
            finest = max(float(np.abs(v).max(initial=0)) for v in values) * 2.0**-20  # within MAX_K steps
            step = max(math.sqrt(self.lambda_ * energy / parameters / LAMBDA), finest)
            return _written(spectra, values, plans.plans(step), step, exponent)
        allowed = self.bits(parameters)
        goal, best = 0.99 * allowed, _written(spectra, values, [], 0.0, 0)
        for _ in range(TRIES):
            step = plans.step_for(goal)
            body = _written(spectra, values, plans.plans(step), step, exponent)
            used = 8 * len(body) / allowed
            if used <= 1:
                best = max(best, body, key=len)
            if ENOUGH <= used <= 1:
                break
            goal *= 0.985 / used
        return best

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Tensors in the members' shapes; elementwise float32, in a fixed order.

        Raises:
            PayloadError: the bytes do not decode.
        """
        step = np.frombuffer(reader.raw(4), "<f4")[0]
        if not np.isfinite(step) or step < 0:
            raise PayloadError(f"section: step: {step}: must be finite and >= 0")
        if step == 0:
            return [np.zeros(m.shape, np.float32) for m in members]
        exponent = reader.i8()
        bases = read_bases(reader, members, self.rank)
        sizes = [b.grid.columns for b in bases for _ in b.classes]
        rows = read_rows(reader, sizes, [c for b in bases for c in b.classes])
        out, at = [], 0
        for member, basis in zip(members, bases, strict=True):
            own = rows[at : at + len(basis.classes)]
            at += len(own)
            steps = basis.steps(float(step), self.weight(member))
            out.append(saturate(_restore(member, basis, own, steps), exponent))
        return out


def _written(
    spectra: Sequence[Spectrum], values: Sequence[Array], plans: Sequence[Plan], step: float, exponent: int
) -> bytes:
    """One encoding at a given step; 0 sends nothing."""
    writer, ends = Writer(), np.finfo(np.float32)
    step32 = np.float32(step if float(ends.tiny) <= step <= float(ends.max) else 0)
    writer.raw(np.array(step32, "<f4").tobytes())
    if step32 == 0:
        return writer.getvalue()
    writer.i8(exponent)
    bases: list[Basis] = []
    rows: list[NDArray[np.float64]] = []
    for spectrum, value, plan in zip(spectra, values, plans, strict=True):
        basis, rotated = rotate(spectrum, value, plan)
        bases.append(basis)
        rows += list(rotated / basis.steps(float(step32), spectrum.weight)[:, None])
    write_bases(writer, bases)
    write_rows(writer, rows, [c for b in bases for c in b.classes])
    return writer.getvalue()


def _restore(member: TensorSpec, basis: Basis, rows: Sequence[Array], steps: NDArray[np.float64]) -> Array:
    """Sum of outer products, each product and each sum rounded to float32."""
    total = np.zeros((basis.grid.rows, basis.grid.columns), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for number, row in enumerate(rows):
            scaled = row * np.float32(steps[number])
            if basis.vectors is None:
                total[basis.kept[number]] = scaled
            else:
                total += np.multiply.outer(basis.vectors[:, number].astype(np.float32), scaled)
    return basis.grid.tensor(total, member.shape)
