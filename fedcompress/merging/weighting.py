"""How much each site counts: policies for weights, and the discount of old updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol

from fedcompress.call_syntax import parse_call
from fedcompress.errors import ConfigError

LARGEST = 2.0**53  # weight


class Weighting(Protocol):
    """A dataclass with a name; ``stale`` is the exponent of the discount."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def stale(self) -> float:
        """Exponent of the discount."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Stale:
    """``stale``: an update that is ``s`` versions old counts ``(1 + s) ** -stale``; 0: all alike."""

    name: ClassVar[str] = ""
    stale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.stale < math.inf:
            raise ConfigError(f"weighting.{self.name}.stale", self.stale, "must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Examples(_Stale):
    """By the number of training examples."""

    name: ClassVar[str] = "examples"


@dataclass(frozen=True, kw_only=True)
class Uniform(_Stale):
    """All alike: for sites whose claims are not to count."""

    name: ClassVar[str] = "uniform"


@dataclass(frozen=True, kw_only=True)
class InverseLoss(_Stale):
    """By one over the training loss: for sites whose data, or labels, are of unequal quality."""

    name: ClassVar[str] = "inverse-loss"


@dataclass(frozen=True, kw_only=True)
class Given(_Stale):
    """By a list: ``given(sites=north:2|south:1)``; a site that is not listed is an error."""

    name: ClassVar[str] = "given"
    sites: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.table:
            raise ConfigError("weighting.given.sites", "''", "must be site:weight, joined by |")

    @property
    def table(self) -> dict[str, float]:
        """Site to weight.

        Raises:
            ConfigError: it is not written as a list of weights, or names a site twice.
        """
        out: dict[str, float] = {}
        for item in self.sites.split("|") if self.sites else []:
            site, _, weight = (part.strip() for part in item.partition(":"))
            try:
                number = float(weight)
            except ValueError:
                number = math.nan
            if not site or site in out or not 0 < number < math.inf:
                raise ConfigError("weighting.given.sites", item, "must be site:weight, each site once, weights above 0")
            out[site] = number
        return out


@dataclass(frozen=True, kw_only=True)
class WeightingRow:
    """One policy, and what it weighs by."""

    config: type[Any]
    law: str
    paper: str


_STALE = "; an update s versions old: (1 + s) ** -stale of it, as FedAsync (arXiv:1903.03934)"
WEIGHTINGS: dict[str, WeightingRow] = {
    "examples": WeightingRow(
        config=Examples, law="training examples" + _STALE, paper="McMahan et al. 2017 (arXiv:1602.05629)"
    ),
    "given": WeightingRow(config=Given, law="a list of weights, sites=north:2|south:1" + _STALE, paper=""),
    "inverse-loss": WeightingRow(config=InverseLoss, law="1 / training loss" + _STALE, paper=""),
    "uniform": WeightingRow(config=Uniform, law="1" + _STALE, paper=""),
}


def parse_weighting(text: str, *, field: str = "weighting") -> Weighting:
    """A policy from ``name`` or ``name(key=value,...)``.

    Raises:
        ConfigError: unknown name or key, or a value out of range; lists the choices.
    """
    policy: Weighting = parse_call(text, {name: row.config for name, row in WEIGHTINGS.items()}, field)
    return policy


def site_weights(
    policy: Weighting,
    examples: Sequence[float],
    losses: Sequence[float | None] | None = None,
    staleness: Sequence[float] | None = None,
    given: Sequence[float | None] | None = None,
) -> list[float]:
    """Weight of each site, above 0 and finite; they need not add up to 1.

    Args:
        policy: which column counts.
        examples: training examples of each site.
        losses: training loss of each site; for ``inverse-loss``.
        staleness: versions that were published since the one each site trained from, each >= 0; all 0 if left out.
        given: weight of each site; for ``given``.

    The discount is that of FedAsync, Xie et al. 2019 (arXiv:1903.03934, the polynomial one).

    Raises:
        ConfigError: a number that is needed is missing, NaN, infinite, zero or negative (staleness may be zero).
    """
    columns: Mapping[str, tuple[str, Sequence[float | None] | None]] = {
        "examples": ("examples", examples),
        "uniform": ("examples", [1.0] * len(examples)),
        "inverse-loss": ("losses", losses),
        "given": ("given", given),
    }
    column, values = columns[policy.name]
    ages = [0.0] * len(examples) if staleness is None else staleness
    if values is None or len(values) != len(examples) or len(ages) != len(examples):
        raise ConfigError("weighting", policy.name, f"needs {column} and staleness of all {len(examples)} sites")
    out = []
    for number, (value, age) in enumerate(zip(values, ages, strict=True)):
        if value is None or not 0 < value < math.inf:
            rule = f"must be a finite number above 0 of every site, for weighting {policy.name}"
            raise ConfigError(f"weighting.{column}[{number}]", value, rule)
        if not 0 <= age < math.inf:
            raise ConfigError(f"weighting.staleness[{number}]", age, "must be a finite number of at least 0")
        weight = 1 / value if policy.name == "inverse-loss" else float(value)
        if weight > LARGEST:
            raise ConfigError(f"weighting.{column}[{number}]", value, f"makes a weight of {weight:.3g}: at most 2^53")
        out.append(weight * (1 + age) ** -policy.stale)
    return out
