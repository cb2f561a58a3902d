"""Plans how an adapter is coded without a base: what is balanced, what is coded in another form, what is exact."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from fedcompress.adapters.safetensors_io import TensorSource
from fedcompress.chunks import TensorSlice, slice_rows
from fedcompress.codecs import Clause, CodecSpec
from fedcompress.codecs.chain import SelectThenQuantize
from fedcompress.codecs.quantizers.exact import BFloat16, Exact
from fedcompress.codecs.transform.code import Transform
from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.files.coded_form import CodedForm, Exponents
from fedcompress.files.effect.balance import balance_unit
from fedcompress.files.effect.units import Effects, Unit
from fedcompress.types import Array, Layout, Tensors, TensorSpec

CACHED = 4  # units of which balanced tensors are kept
MAX_COPY_ERROR = 0.01  # relative error of a tensor that cannot be judged, where a clause names its group


def is_faithful(clause: Clause) -> bool:
    """Return True if a clause changes no value by more than a rounding of that value."""
    match clause.code:
        case SelectThenQuantize(select=None, quantize=quantize):
            return isinstance(quantize, Exact | BFloat16)
        case _:
            return False


def has_one_step(clause: Clause) -> bool:
    """Return True if a clause codes all entries with one step; selections have thresholds, others scales of blocks."""
    return isinstance(clause.code, Transform)


class EffectPlan:
    """Gives an adapter's tensors as they are coded, part by part; one unit at a time is in memory beside the part.

    Args:
        source: the adapter.
        effects: its units.
        spec: the codec.
    """

    def __init__(self, source: TensorSource, effects: Effects, spec: CodecSpec) -> None:
        self._source = source
        self._effects = effects
        self._clauses = {t.name: _find_clause(spec, t) for t in source.layout.tensors}
        self._cache: OrderedDict[str, Tensors] = OrderedDict()  # balanced tensors by the unit's first name
        self._exponents: dict[str, Exponents] = {}  # of all tensors that were balanced so far
        names = {n for n in effects.exact if not self._has_own_clause(n)}
        diagonals = {u.diagonal for u in effects.units.values() if u.diagonal and self._is_balanced(u)}
        self.exact = frozenset(names | diagonals)
        self.checked = frozenset(effects.exact.keys() - names)  # not judged, and coded since a clause names their group

    @cached_property
    def layout(self) -> Layout:
        """Return the layout of what the codec sees of the whole adapter."""
        return Layout(tuple(t for t in self._source.layout.tensors if t.name not in self.exact))

    def read(self, slices: list[TensorSlice]) -> Tensors:
        """Read the slices of a part, of the adapter with balanced factors.

        Raises:
            NonFiniteError: a value is NaN or infinite; names the tensor.
        """
        values: Tensors = {}
        for piece in slices:
            name = piece.spec.name
            unit = self._effects.units.get(name)
            if unit is not None and self._is_balanced(unit):
                values[name] = np.ascontiguousarray(self._balance(unit)[name][slice_rows(piece)])
            else:
                values[name] = self._source.read(piece)
        return values

    def find_form(self, slices: list[TensorSlice]) -> CodedForm:
        """Find the coded form of a part that was read."""
        names = {s.spec.name for s in slices}
        units = {n: u for n, u in self._effects.units.items() if n in names}
        return CodedForm(
            exact=self.exact & names,
            ones=frozenset(n for n, u in units.items() if u.offset and not is_faithful(self._clauses_of(u)[0])),
            exponents={
                s.spec.name: _cut_exponents(self._exponents[s.spec.name], s)
                for s in slices
                if s.spec.name in self._exponents
            },
        )

    def list_weighed(self, slices: list[TensorSlice]) -> list[Unit]:
        """List the products, weighed by component, all of whose tensors are in a part that was read."""
        whole = {s.spec.name for s in slices if not s.total}
        units = (self._effects.units.get(s.spec.name) for s in slices)
        known = {u.names[0]: u for u in units if u is not None and u.names[0] in self._exponents}
        return [u for u in known.values() if whole.issuperset(u.names)]

    def check_copies(self, values: Mapping[str, Array], decoded: Mapping[str, Array]) -> None:
        """Raise unless tensors that cannot be judged come back nearly as they were.

        Args:
            values: of a part, float32 by name.
            decoded: what a decoder has in their place.

        Raises:
            ConfigError: names the tensor, its error, and what to do.
        """
        for name in self.checked & values.keys():
            whole = float(np.linalg.norm(values[name].astype(np.float64)))
            error = float(np.linalg.norm(values[name].astype(np.float64) - decoded[name])) / whole if whole else 0.0
            if error > MAX_COPY_ERROR:
                rule = (
                    f"loses {error:.2g} of {name}, and how much of its change that is cannot be known "
                    f"({self._effects.exact[name]}): at most {MAX_COPY_ERROR}; give --base, or a codec without "
                    f"this clause: then it is coded exactly"
                )
                raise ConfigError("--codec", str(self._clauses[name]), rule)

    def _has_own_clause(self, name: str) -> bool:
        """Return True if a tensor that cannot be judged is coded by a clause: one that rounds, or names its group."""
        clause = self._clauses[name]
        return clause is not None and bool(clause.groups or is_faithful(clause))

    def _clauses_of(self, unit: Unit) -> list[Clause]:
        """Return the clauses of a unit's tensors.

        Raises:
            ConfigError: a tensor's group has none.
        """
        clauses = []
        for name in unit.names:
            clause = self._clauses[name]
            if clause is None:
                group = self._source.layout.by_name[name].group
                raise ConfigError("codec", group, f"needs a clause for group {group!r} ({name})")
            clauses.append(clause)
        return clauses

    def _is_balanced(self, unit: Unit) -> bool:
        """Return True if the factors may be changed: no clause promises them as they are."""
        return unit.is_product and not any(map(is_faithful, self._clauses_of(unit)))

    def _balance(self, unit: Unit) -> Tensors:
        if unit.names[0] not in self._cache:
            specs = self._source.layout.by_name
            values = {n: self._source.read(TensorSlice(spec=specs[n])) for n in unit.names}
            for name, value in values.items():
                if not np.isfinite(value).all():
                    raise NonFiniteError(f"encode: {name}: contains NaN or infinity: all values must be finite")
            one_step = all(map(has_one_step, self._clauses_of(unit)))
            tensors, exponents = balance_unit(unit, values, one_step=one_step)
            self._cache[unit.names[0]] = tensors
            self._exponents |= exponents
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        return self._cache[unit.names[0]]


def _find_clause(spec: CodecSpec, tensor: TensorSpec) -> Clause | None:
    named = (c for c in spec.clauses if tensor.group in c.groups)
    return next(named, next((c for c in spec.clauses if not c.groups), None))


def _cut_exponents(exponents: Exponents, piece: TensorSlice) -> Exponents:
    """Return the exponents of some rows of a tensor."""
    if exponents.axis != 0 or not piece.total:
        return exponents
    return replace(exponents, values=exponents.values[piece.start : piece.start + piece.spec.shape[0]])
