"""Encodes singular components of each tensor, which get bits by reverse water-filling: the transform code.

A matrix, transposed so that it has no more rows than columns, is rotated on its small side by the singular vectors of
its own Gram matrix. The rotation is rounded and sent, and every rotated row is quantized with one and the same step by
``trellis``. Rows that are too weak to be worth their bits are left out. With one step for the whole update, bits go
where energy is: on Gaussian rows that is reverse water-filling (Cover and Thomas, section 10.3.3). Updates of LoRA
factors after short rounds of Adam have a few strong components and look Gaussian inside them, which is why this
carries several times the energy of sparse ternary at equal bytes.

We know of no publication of this for federated updates. Nearest are PowerSGD (Vogels et al. 2019, arXiv:1905.13727),
which sends factors unquantized, and Delta-CoMe (Ping et al. 2024, arXiv:2406.08903), which gives singular vectors of
stored deltas fixed widths.

A section is the step as float32, and unless that is 0: an exponent of two, the bases (``rotation``), and the rows
(``trellis_stream``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import NO_HINTS, EncoderHints
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.transform.bit_allocation import BitAllocator, BitPlan, TensorSpectrum, compute_spectrum
from fedcompress.codecs.transform.rotation import Basis, read_bases, rotate, write_bases
from fedcompress.codecs.transform.trellis import LAMBDA
from fedcompress.codecs.transform.trellis_stream import read_trellis_rows, write_trellis_rows
from fedcompress.errors import ConfigError, PayloadError
from fedcompress.numerics.scaling import choose_exponent, saturate
from fedcompress.types import Array, TensorSpec

TRIES = 5  # encodings that are tried for a budget
ENOUGH = 0.96  # share of the budget that ends the search for a better step
# bytes by unit, the longest names first: powers of 1000 without an i, of 1024 with one
_UNITS = {
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "bytes": 1,
    "b": 1,
}


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Sends quantized, entropy-coded singular components, all under one step.

    Exactly one of ``budget`` and ``lambda`` must be given.

    Law: the squared error is at most 1.01 times the squared norm, and the size is at most ``budget``.

    Args:
        budget: at most so many bits a parameter (``0.25``), or bytes (``64KiB``, ``1000B``), headers of the envelope
            not counted. An update that is exhausted sooner takes less.
        lambda_: written ``lambda``: the squared error, as a share of the update's mean square, that is worth one
            bit; 0.1 is fine, 1 is coarse. The size follows from the update.
        head: what the squared error of tensors of group ``head`` counts, from 0.001 to 1e6; a classifier learnt from
            zero suffers far more from errors than factors do. All other tensors count 1.
        rank: the largest number of components of a tensor, from 1 to 4096.

    >>> from fedcompress.codecs import preview
    >>> print(preview("transform(lambda=0.01)", [[10, 20, 30, 40, 50, 60], [-10, -20, -30, -40, -50, -60]]))
    18 bytes, relative squared error 0.0053: [10.3, 20.8, 26, 36.4, 46.8, 57.2, -10.3, -20.8, -26, ...]
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
        """Return the budget in bits for an update of so many parameters.

        Raises:
            ConfigError: the budget is not a number of bits, or a size, above 0.
        """
        text = self.budget.strip().lower()
        unit = next((u for u in _UNITS if text.endswith(u)), "")
        try:
            number = float(text.removesuffix(unit))
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            rule = "must be bits a parameter (0.25) or a size (1000B, 64KB, 64 KiB, 2MiB, 1GiB), above 0"
            raise ConfigError("codec.transform.budget", self.budget, rule)
        return number * 8 * _UNITS[unit] if unit else number * parameters

    def weight(self, member: TensorSpec) -> float:
        """Return what the squared error of a tensor counts."""
        return self.head if member.group == "head" else 1.0

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Encode the tensors; equal input gives equal bytes on one machine and thread count (see ``eigh``)."""
        exponent = choose_exponent(values)
        values = values if exponent == 0 else [saturate(v, -exponent) for v in values]
        spectra = [compute_spectrum(v, self.weight(m)) for m, v in zip(members, values, strict=True)]
        parameters = sum(v.size for v in values)
        energy = sum(float(s.rows.sum()) * s.weight for s in spectra)
        if energy == 0:
            return _encode_at_step(spectra, values, [], 0.0, 0)
        allocator = BitAllocator(spectra, self.rank)
        if self.lambda_:
            finest = max(float(np.abs(v).max(initial=0)) for v in values) * 2.0**-20  # within MAX_K steps
            step = max(math.sqrt(self.lambda_ * energy / parameters / LAMBDA), finest)
            return _encode_at_step(spectra, values, allocator.plan(step), step, exponent)
        allowed = self.bits(parameters)
        goal = 0.99 * allowed
        best = _encode_at_step(spectra, values, [], 0.0, 0)
        for _ in range(TRIES):
            step = allocator.find_step(goal)
            body = _encode_at_step(spectra, values, allocator.plan(step), step, exponent)
            used = 8 * len(body) / allowed
            if used <= 1:
                best = max(best, body, key=len)
            if ENOUGH <= used <= 1:
                break
            goal *= 0.985 / used
        return best

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Decode tensors by elementwise float32 operations in a fixed order."""
        step = np.frombuffer(reader.raw(4), "<f4")[0]
        if not np.isfinite(step) or step < 0:
            raise PayloadError(f"section: step: {step}: must be finite and >= 0")
        if step == 0:
            return [np.zeros(m.shape, np.float32) for m in members]
        exponent = reader.i8()
        bases = read_bases(reader, members, self.rank)
        sizes = [b.grid.columns for b in bases for _ in b.classes]
        rows = read_trellis_rows(reader, sizes, [c for b in bases for c in b.classes])
        tensors = []
        at = 0
        for member, basis in zip(members, bases, strict=True):
            own = rows[at : at + len(basis.classes)]
            at += len(own)
            steps = basis.steps(float(step), self.weight(member))
            tensors.append(saturate(_restore(member, basis, own, steps), exponent))
        return tensors


def _encode_at_step(
    spectra: Sequence[TensorSpectrum], values: Sequence[Array], plans: Sequence[BitPlan], step: float, exponent: int
) -> bytes:
    """Encode by plans for a step; a step that float32 cannot hold as a normal number sends nothing."""
    writer = Writer()
    ends = np.finfo(np.float32)
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
    write_trellis_rows(writer, rows, [c for b in bases for c in b.classes])
    return writer.getvalue()


def _restore(member: TensorSpec, basis: Basis, rows: Sequence[Array], steps: NDArray[np.float64]) -> Array:
    """Return a tensor from its rows, in steps: a sum of outer products, each product and sum rounded to float32."""
    total = np.zeros((basis.grid.rows, basis.grid.columns), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for number, row in enumerate(rows):
            scaled = row * np.float32(steps[number])
            if basis.vectors is None:
                total[basis.row_indices[number]] = scaled
            else:
                total += np.multiply.outer(basis.vectors[:, number].astype(np.float32), scaled)
    return basis.grid.tensor(total, member.shape)
