"""Decides how much each site counts: policies for weights, and the discount of old updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass
from statistics import median_low
from typing import Any, ClassVar, Protocol

from fedcompress.call_syntax import parse_call
from fedcompress.errors import ConfigError

LARGEST = 2.0**53  # largest weight of a site, before the discount
CAP = 3.0  # times the median weight that a site counts at most


@dataclass(frozen=True, kw_only=True)
class SiteReports:
    """Holds what is known of the sites of a round, one value for each site, in one order."""

    examples: Sequence[float]  # training examples that the site has
    processed: Sequence[float | None] | None = None  # distinct ones that it trained on in the round
    losses: Sequence[float | None] | None = None  # training loss
    given: Sequence[float | None] | None = None  # weight in the run's list


class Weighting(Protocol):
    """A weighting is a frozen dataclass with a name; its fields are the parameters that a user can set.

    Attributes:
        name: name in the table ``WEIGHTINGS`` and in ``name(key=value,...)``.
        column: name of what it weighs by, for error messages; one of the fields of ``SiteReports``.
    """

    name: ClassVar[str]
    column: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def stale(self) -> float:
        """Return the exponent of the discount of old updates, at least 0."""
        ...

    @property
    def cap(self) -> float:
        """Return how many times the median weight a site counts at most; 0: no limit."""
        ...

    def values(self, reports: SiteReports) -> Sequence[float | None] | None:
        """Return what the policy weighs by, one value for each site; None if the reports lack it."""
        ...

    def weight(self, value: float) -> float:
        """Return the weight of a site, before the discount, from its value, which is finite and above 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Discounted:
    """Has the discount of all policies: an update that is ``s`` versions old counts ``(1 + s) ** -stale`` times.

    With ``stale=0`` updates of all ages count alike.
    """

    name: ClassVar[str] = ""
    column: ClassVar[str] = ""
    cap: ClassVar[float] = 0.0
    stale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.stale < math.inf:
            raise ConfigError(f"weighting.{self.name}.stale", self.stale, "must be at least 0")

    def weight(self, value: float) -> float:
        """Return the value itself as the weight."""
        return float(value)


@dataclass(frozen=True, kw_only=True)
class _Capped(_Discounted):
    """Limits what a site claims: it counts at most ``cap`` times the median, and has a share of at most 2/n of n."""

    cap: float = CAP  # type: ignore[misc]  # a parameter here, a constant in the others

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.cap == 0 or 1 <= self.cap < math.inf):
            raise ConfigError(f"weighting.{self.name}.cap", self.cap, "must be 0 (no limit) or at least 1")


@dataclass(frozen=True, kw_only=True)
class Examples(_Capped):
    """The policy weighs by the number of training examples.

    Args:
        stale: exponent of the discount of old updates, at least 0.
        cap: how many times the median a site counts at most, at least 1; 0 for no limit, as FedAvg has it.

    Raises:
        ConfigError: ``stale`` is below 0, or ``cap`` out of range.

    Examples:
        >>> from fedcompress.merging import parse_weighting, site_weights
        >>> site_weights(parse_weighting("examples"), examples=[100, 300], staleness=[0, 3])
        [100.0, 150.0]
        >>> site_weights(parse_weighting("examples"), examples=[100, 100, 100, 100, 2**53])
        [100.0, 100.0, 100.0, 100.0, 266.6666666666667]
    """

    name: ClassVar[str] = "examples"
    column: ClassVar[str] = "examples"

    def values(self, reports: SiteReports) -> Sequence[float | None] | None:
        """Return the numbers of examples."""
        return reports.examples


@dataclass(frozen=True, kw_only=True)
class Processed(_Capped):
    """The policy weighs by the distinct training examples that a site processed in the round.

    That is the work behind an update: the site's rows, but no more than the examples in the steps that it made. Sites
    that made equally many steps count alike, however many more rows one has; a site with few rows, which saw them
    several times, counts less. What a site can claim is bounded by what it was asked for.

    Args:
        stale: exponent of the discount of old updates, at least 0.
        cap: how many times the median a site counts at most, at least 1; 0 for no limit.

    Raises:
        ConfigError: ``stale`` is below 0, or ``cap`` out of range.

    Examples:
        >>> from fedcompress.merging import parse_weighting, site_weights
        >>> site_weights(parse_weighting("processed"), examples=[100, 3000, 9000], processed=[100, 640, 640])
        [100.0, 640.0, 640.0]
    """

    name: ClassVar[str] = "processed"
    column: ClassVar[str] = "processed"

    def values(self, reports: SiteReports) -> Sequence[float | None] | None:
        """Return the numbers of examples that were processed."""
        return reports.processed


@dataclass(frozen=True, kw_only=True)
class Uniform(_Discounted):
    """The policy weighs all sites alike, for sites whose claims are not to count.

    Args:
        stale: exponent of the discount of old updates, at least 0.

    Raises:
        ConfigError: ``stale`` is below 0.

    Examples:
        >>> from fedcompress.merging import parse_weighting, site_weights
        >>> site_weights(parse_weighting("uniform"), examples=[100, 300])
        [1.0, 1.0]
    """

    name: ClassVar[str] = "uniform"
    column: ClassVar[str] = "examples"

    def values(self, reports: SiteReports) -> Sequence[float | None] | None:
        """Return 1 for each site."""
        return [1.0] * len(reports.examples)


@dataclass(frozen=True, kw_only=True)
class InverseLoss(_Capped):
    """The policy weighs by one over the training loss, for sites whose data, or labels, are of unequal quality.

    Args:
        stale: exponent of the discount of old updates, at least 0.
        cap: how many times the median a site counts at most, at least 1; 0 for no limit.

    Raises:
        ConfigError: ``stale`` is below 0, or ``cap`` out of range.

    Examples:
        >>> from fedcompress.merging import parse_weighting, site_weights
        >>> site_weights(parse_weighting("inverse-loss"), examples=[100, 300], losses=[0.5, 1.0])
        [2.0, 1.0]
    """

    name: ClassVar[str] = "inverse-loss"
    column: ClassVar[str] = "losses"

    def values(self, reports: SiteReports) -> Sequence[float | None] | None:
        """Return the training losses."""
        return reports.losses

    def weight(self, value: float) -> float:
        """Return one over the loss."""
        return 1 / value


@dataclass(frozen=True, kw_only=True)
class Given(_Discounted):
    """The policy weighs by a list, ``given(sites=north:2|south:1)``; a site that is not listed is an error.

    Args:
        stale: exponent of the discount of old updates, at least 0.
        sites: the list: ``site:weight``, joined by ``|``.

    Raises:
        ConfigError: ``stale`` is below 0, or the list is empty or not well written.

    Examples:
        >>> from fedcompress.merging import parse_weighting, site_weights
        >>> policy = parse_weighting("given(sites=north:2|south:1)")
        >>> site_weights(policy, examples=[100, 300], given=[policy.table[site] for site in ("north", "south")])
        [2.0, 1.0]
    """

    name: ClassVar[str] = "given"
    column: ClassVar[str] = "given"
    sites: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.table:
            raise ConfigError("weighting.given.sites", "''", "must be site:weight, joined by |")

    @property
    def table(self) -> dict[str, float]:
        """Return the weights by site.

        Raises:
            ConfigError: the text is not a list of weights, or names a site twice.
        """
        table: dict[str, float] = {}
        for item in self.sites.split("|") if self.sites else []:
            site, _, text = (part.strip() for part in item.partition(":"))
            try:
                weight = float(text)
            except ValueError:
                weight = math.nan
            if not site or site in table or not 0 < weight < math.inf:
                raise ConfigError("weighting.given.sites", item, "must be site:weight, each site once, weights above 0")
            table[site] = weight
        return table

    def values(self, reports: SiteReports) -> Sequence[float | None] | None:
        """Return the weights of the list."""
        return reports.given


@dataclass(frozen=True, kw_only=True)
class WeightingRow:
    """A row describes one policy."""

    config: type[Any]  # the policy's class
    law: str  # its formula
    paper: str  # where it is from; empty if it is ours


_STALE = "; an update s versions old: (1 + s) ** -stale of it, as FedAsync (arXiv:1903.03934)"
WEIGHTINGS: dict[str, WeightingRow] = {
    "examples": WeightingRow(
        config=Examples, law="training examples" + _STALE, paper="McMahan et al. 2017 (arXiv:1602.05629)"
    ),
    "given": WeightingRow(config=Given, law="a list of weights, sites=north:2|south:1" + _STALE, paper=""),
    "inverse-loss": WeightingRow(config=InverseLoss, law="1 / training loss" + _STALE, paper=""),
    "processed": WeightingRow(
        config=Processed,
        law="min(examples, steps made x batch size) in the round" + _STALE,
        paper="",
    ),
    "uniform": WeightingRow(config=Uniform, law="1" + _STALE, paper=""),
}


def parse_weighting(text: str, *, field: str = "weighting") -> Weighting:
    """Parse a policy from ``name`` or ``name(key=value,...)``.

    Raises:
        ConfigError: a name or key is unknown or a value is out of range; the message lists the choices.
    """
    policy: Weighting = parse_call(text, {name: row.config for name, row in WEIGHTINGS.items()}, field)
    return policy


def site_weights(
    policy: Weighting,
    examples: Sequence[float],
    losses: Sequence[float | None] | None = None,
    staleness: Sequence[float] | None = None,
    given: Sequence[float | None] | None = None,
    processed: Sequence[float | None] | None = None,
) -> list[float]:
    """Compute the weight of each site.

    All sequences have one value for each site, in one order. The discount of old updates is that of FedAsync, Xie et
    al. 2019 (arXiv:1903.03934, the polynomial one).

    Args:
        policy: what the sites are weighed by.
        examples: training examples of each site.
        losses: training loss of each site; needed for ``inverse-loss`` only.
        staleness: versions that were published since the one that each site trained from, at least 0; all 0 if left
            out.
        given: weight of each site; needed for ``given`` only.
        processed: distinct examples that each site trained on in the round; needed for ``processed`` only.

    Returns:
        The weights: above 0, finite, and in general with a sum other than 1.

    Raises:
        ConfigError: a number that is needed is missing, NaN, infinite, zero or negative; staleness may be zero.
    """
    values = policy.values(SiteReports(examples=examples, processed=processed, losses=losses, given=given))
    ages = [0.0] * len(examples) if staleness is None else staleness
    column = policy.column
    if values is None or len(values) != len(examples) or len(ages) != len(examples):
        raise ConfigError("weighting", policy.name, f"needs {column} and staleness of all {len(examples)} sites")
    weights = []
    for site, value in enumerate(values):
        if value is None or not 0 < value < math.inf:
            rule = f"must be a finite number above 0 of every site, for weighting {policy.name}"
            raise ConfigError(f"weighting.{column}[{site}]", value, rule)
        weight = policy.weight(value)
        if weight > LARGEST:
            raise ConfigError(f"weighting.{column}[{site}]", value, f"makes a weight of {weight:.3g}: at most 2^53")
        weights.append(weight)
    if policy.cap:
        weights = limit_weights(weights, policy.cap)
    for site, age in enumerate(ages):
        if not 0 <= age < math.inf:
            raise ConfigError(f"weighting.staleness[{site}]", age, "must be a finite number of at least 0")
    return [weight * (1 + age) ** -policy.stale for weight, age in zip(weights, ages, strict=True)]


def limit_weights(weights: Sequence[float], cap: float) -> list[float]:
    """Limit what one site weighs, so that its claim alone never decides.

    No weight is more than ``cap`` times the lower median, nor more than a share of 2/n of all n after that: rules that
    count by weight, such as the median, are then safe from any one site of five or more.

    Args:
        weights: of the sites, above 0.
        cap: at least 1.

    Returns:
        The weights, of which only the largest are changed.
    """
    bound = cap * median_low(weights)
    limited = [min(weight, bound) for weight in weights]
    share, rest = 2 / len(limited), sum(limited)
    if len(limited) < 3:
        return limited
    for cut, weight in enumerate(sorted(limited, reverse=True)):
        bound = share * rest / (1 - share * cut)  # of those that are cut, beside the rest
        if weight <= bound:  # which holds at half of the sites at the latest
            return [min(weight, bound) for weight in limited]
        rest -= weight
    return limited
