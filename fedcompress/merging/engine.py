"""Runs a rule over a layout, unit by unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Rule, units_of
from fedcompress.merging.table import RULES
from fedcompress.types import Array, Layout, Tensors

# Fetches the tensors of one unit from one site's update.
Fetch = Callable[[Sequence[str]], Mapping[str, Array]]


def rule_named(text: str, *, field: str = "rule") -> Rule:
    """A rule from ``name`` or ``name(key=value,...)``.

    Raises:
        ConfigError: unknown name or key, or a value out of range; lists the choices.
    """
    name, _, body = text.strip().partition("(")
    row = RULES.get(name.strip())
    if row is None:
        raise ConfigError(field, text, f"must be one of {list(RULES)}")
    known = {f.name for f in fields(row.config)}  # type: ignore[arg-type]
    if body and not body.endswith(")"):
        raise ConfigError(field, text, "must be name or name(key=value,...)")
    kwargs = {}
    for item in body.removesuffix(")").split(",") if body.removesuffix(")").strip() else []:
        key, equals, value = (s.strip() for s in item.partition("="))
        if not equals or key not in known or key in kwargs:
            rule = f"must be key=value, once each, key one of {sorted(known)}"
            raise ConfigError(f"{field}.{name}", item.strip(), rule)
        try:
            kwargs[key] = float(value)
        except ValueError as error:
            raise ConfigError(f"{field}.{name}.{key}", value, "must be a number") from error
    return row.config(**kwargs)


@dataclass(frozen=True, kw_only=True)
class Merger:
    """A rule bound to a layout."""

    rule: Rule
    layout: Layout

    def merge(self, base: Mapping[str, Array], weights: Sequence[float], updates: Sequence[Fetch]) -> Tensors:
        """Merged update, in layout order.

        Args:
            base: the published state that all updates start from.
            weights: finite, nonnegative, one for each update; normalised here to add up to 1.
            updates: one fetch function for each site, in a fixed order of sites, because
                floating-point sums depend on it.

        Raises:
            ConfigError: no update, or weights that do not have a positive sum.
        """
        total = float(sum(weights))
        if not updates or len(weights) != len(updates) or not min(weights) >= 0 or not 0 < total < math.inf:
            raise ConfigError(
                "weights", list(weights), f"must be {len(updates)} finite numbers >= 0 with a sum above 0"
            )
        out: Tensors = {}
        for unit in units_of(self.layout):
            names = [t.name for t in unit.tensors]
            state = self.rule.init(unit, {n: base[n] for n in names})
            for weight, fetch in zip(weights, updates, strict=True):
                state = self.rule.fold(state, weight / total, fetch(names))
            out |= self.rule.finish(state)
        return {t.name: out[t.name] for t in self.layout.tensors}
