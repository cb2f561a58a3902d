"""The factors of one module from all sites are reduced to one pair here, by a form or by a rule of rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedcompress.errors import ConfigError, UnknownNameError, one_of
from fedcompress.merging import RULES, AnyRule, parse_rule
from fedcompress.merging.base import Elementwise, Floats, Modular, Module
from fedcompress.merging.lora_rules.ridge import average_factors
from fedcompress.merging.lowrank import Spectrum, Term, spectrum
from fedcompress.types import Array

EXACT = "exact"
FLORA = "flora"
FEDEX = "fedex"
FORMS: dict[str, str] = {  # forms that a merge of folders has beside the rules of rounds, and their laws
    EXACT: "sum w B A through QR and a small SVD, at any rank (as FlexLoRA, arXiv:2402.11505)",
    FEDEX: "mean A, mean B, and what they miss as extra rank (FedEx-LoRA, arXiv:2410.09432)",
    FLORA: "stacked factors: exact, the ranks add up (FLoRA, arXiv:2409.05976)",
}
PRODUCT = "product"
SPACES = ("factors", PRODUCT)


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Holds what was asked for, checked together by ``check_options``."""

    rule: AnyRule | str  # a rule of rounds, or the name of a form
    space: str = "factors"  # where a rule that merges entries works: factors or product
    rank: int | None = None  # rank to keep
    energy: float | None = None  # share of each module's squared norm to keep

    def choose_rank(self, svd: Spectrum, taken: int = 0) -> int:
        """Return how many singular values to keep; ``taken`` is the rank that other factors of the result have."""
        if self.rank is not None:
            return min(self.rank - taken, svd.rank)
        return svd.rank if self.energy is None else svd.rank_for(self.energy)

    @property
    def name(self) -> str:
        """Return the name of the rule or form."""
        return self.rule if isinstance(self.rule, str) else self.rule.name

    @property
    def elementwise(self) -> Elementwise[object] | None:
        """Return the rule if it merges entry by entry, else None."""
        return None if isinstance(self.rule, str | Modular) else self.rule


def check_options(rule: str, space: str, rank: int | None, energy: float | None) -> MergeOptions:
    """Parse the rule, and check that all options go together.

    Args:
        rule: name of a form, or a rule as ``name(key=value,...)``.
        space: ``factors`` or ``product``.
        rank: rank to keep; None if it was not given.
        energy: share of the squared norm to keep, above 0, at most 1; None if it was not given.

    Returns:
        The options.

    Raises:
        ConfigError: an option is out of range, or does not go with another one; the message names it.
    """
    parsed = _parse_rule_or_form(rule)
    if not isinstance(parsed, str) and parsed.needs_rounds:
        raise ConfigError("--rule", parsed.name, "is for rounds, in turns: folders have no round; use ffa or exact")
    options = MergeOptions(rule=parsed, space=space, rank=rank, energy=energy)
    if space not in SPACES:
        raise ConfigError("--space", space, f"one of {list(SPACES)}")
    if space == PRODUCT and options.elementwise is None:
        raise ConfigError("--space", space, f"must be factors: {rule} works on products by itself")
    if rank is not None and rank < 1:
        raise ConfigError("--rank", rank, "must be at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError("--energy", energy, "must be above 0, at most 1")
    if rank is not None and energy is not None:
        raise ConfigError("--energy", energy, "must not be given together with --rank")
    can_truncate = parsed in (EXACT, FEDEX) or space == PRODUCT
    for name, value in (("--rank", rank), ("--energy", energy)):
        if value is not None and not can_truncate:
            raise ConfigError(name, value, f"is for exact, fedex and --space product: {rule} has a rank of its own")
    if space == PRODUCT and rank is None and energy is None:
        raise ConfigError("--rank", "missing", "must be given, or --energy: the merged products have full rank")
    return options


def _parse_rule_or_form(text: str) -> AnyRule | str:
    name = text.strip()
    if name in FORMS:
        return name
    try:
        return parse_rule(text, field="--rule")
    except UnknownNameError as error:
        raise ConfigError("--rule", error.value, one_of([*FORMS, *RULES], error.value)) from error


@dataclass(frozen=True, kw_only=True)
class ModuleFactors:
    """Holds the factors of one module from the sites that have it, float32; scaling is a part of a term's weight."""

    name: str
    shape: tuple[int, int]  # (rows, columns) of the product
    members: Sequence[int]  # numbers of the sites that have the module
    terms: Sequence[Term]  # for each of these its scaling, B (rows, rank) and A (rank, columns)
    weights: Floats  # (sites,): weights of all sites; unless they are taken as they are, they add up to 1

    @property
    def weighted(self) -> list[Term]:
        """Return the terms of the weighted sum over the sites."""
        return [
            Term(t.weight * float(self.weights[i]), t.b, t.a) for i, t in zip(self.members, self.terms, strict=True)
        ]


@dataclass(frozen=True)
class FactorPair:
    """Holds one pair of factors, and says what was cut off."""

    b: Floats | Array  # (rows, rank)
    a: Floats | Array  # (rank, columns)
    error: float = 0.0  # norm of what was cut off, relative to what the form would keep at full rank


def reduce_module(module: ModuleFactors, options: MergeOptions) -> FactorPair:
    """Reduce a module to one pair, by a form or a LoRA rule.

    Raises:
        ConfigError: the form or rule needs equal ranks, or an equal A, and the sites have others.
    """
    match options.rule:
        case str(name) if name == EXACT:
            return truncate_spectrum(spectrum(module.weighted, module.shape), options)
        case str(name) if name == FLORA:
            terms = module.weighted
            return FactorPair(
                np.hstack([t.weight * np.asarray(t.b, np.float64) for t in terms]),
                np.vstack([np.asarray(t.a, np.float64) for t in terms]),
            )
        case Modular() as rule:
            if rule.requires_frozen_a:
                _check_frozen(module, rule.name)
            a, b = rule.pair(_to_round_module(module, rule.name), 1)
            return FactorPair(b, a)
        case _:
            return _reduce_fedex(module, options)


def truncate_spectrum(svd: Spectrum, options: MergeOptions) -> FactorPair:
    """Return balanced factors of the rank that was asked for; at least 1, since PEFT has no rank 0."""
    truncation = svd.truncate(max(options.choose_rank(svd), 1))
    return FactorPair(truncation.b, truncation.a, truncation.error)


def _reduce_fedex(module: ModuleFactors, options: MergeOptions) -> FactorPair:
    """Return the mean factors with the best part of what they miss as extra rank."""
    a, b = average_factors(_to_round_module(module, FEDEX))
    rank = a.shape[0]
    if options.rank is not None and options.rank < rank:
        raise ConfigError("--rank", options.rank, f"must be at least {rank}, the rank of the means, for fedex")
    residual = spectrum([*module.weighted, Term(-1.0, b, a)], module.shape)
    whole = float(np.linalg.norm(spectrum(module.weighted, module.shape).values))
    floor = whole * max(module.shape) * float(np.finfo(np.float64).eps)
    real_rank = int(np.count_nonzero(residual.values > floor))  # the residual may be nothing but rounding
    extra = residual.truncate(min(options.choose_rank(residual, taken=rank), real_rank))
    lost = extra.error * float(np.linalg.norm(residual.values))
    return FactorPair(np.hstack([b, extra.b]), np.vstack([a, extra.a]), lost / whole if whole else 0.0)


def _to_round_module(module: ModuleFactors, rule: str) -> Module:
    """Return the factors as a rule of rounds takes them: scaling is in B, and all sites have the module.

    For a site without it, B is zero and A is the mean of those that have it. So such a site sends a zero update, and
    does not pull A towards zero.
    """
    ranks = sorted({t.b.shape[1] for t in module.terms})
    if len(ranks) > 1:
        rule_text = f"have ranks {ranks} in {module.name}: it needs equal ranks; use exact, or --space product"
        raise ConfigError("--rule", rule, f"the adapters {rule_text}")
    weights = module.weights[list(module.members)]
    shares = weights / weights.sum() if weights.sum() else np.full(len(weights), 1 / len(weights))
    rank = ranks[0]
    rows, columns = module.shape
    mean_a = np.zeros((rank, columns))
    for share, term in zip(shares, module.terms, strict=True):
        mean_a += share * np.asarray(term.a, np.float64)
    factors: list[tuple[Floats, Floats]] = [(mean_a, np.zeros((rows, rank)))] * len(module.weights)
    for i, term in zip(module.members, module.terms, strict=True):
        factors[i] = (np.asarray(term.a, np.float64), term.weight * np.asarray(term.b, np.float64))
    return Module(module.name, mean_a, np.zeros((rows, rank)), factors, module.weights)


def _check_frozen(module: ModuleFactors, rule: str) -> None:
    if any(t.a.shape != module.terms[0].a.shape or (t.a != module.terms[0].a).any() for t in module.terms):
        reason = f"needs the same A in all adapters, as FFA-LoRA freezes it: they differ in {module.name}; use exact"
        raise ConfigError("--rule", rule, reason)
