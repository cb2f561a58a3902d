"""How the factors of one module become one pair: forms that may change the rank, and the LoRA rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging import RULES, parse_rule
from fedcompress.merging.base import Elementwise, Floats, Modular, Module
from fedcompress.merging.lowrank import Spectrum, Term, spectrum

EXACT, FLORA, FEDEX = "exact", "flora", "fedex"
FORMS: dict[str, str] = {
    EXACT: "sum w B A through QR and a small SVD, at any rank (as FlexLoRA, arXiv:2402.11505)",
    FEDEX: "mean A, mean B, and what they miss as extra rank (FedEx-LoRA, arXiv:2410.09432)",
    FLORA: "stacked factors: exact, the ranks add up (FLoRA, arXiv:2409.05976)",
}
PRODUCT = "product"


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What was asked for, checked together."""

    rule: Elementwise | Modular | str  # a rule, or the name of a form
    space: str = "factors"
    rank: int | None = None
    energy: float | None = None

    def rank_of(self, found: Spectrum, taken: int = 0) -> int:
        """Rank to keep, beside what is taken already."""
        if self.rank is not None:
            return min(self.rank - taken, found.rank)
        return found.rank if self.energy is None else found.rank_for(self.energy)

    @property
    def name(self) -> str:
        """Of the rule or form."""
        return self.rule if isinstance(self.rule, str) else self.rule.name

    @property
    def elementwise(self) -> Elementwise | None:
        """The rule, if it merges entries one by one."""
        return None if isinstance(self.rule, str | Modular) else self.rule


def choose(rule: str, space: str, rank: int | None, energy: float | None) -> MergeOptions:
    """Check the options.

    Raises:
        ConfigError: one is out of range, or they do not go together; names it.
    """
    made: Elementwise | Modular | str = rule.strip()
    if made not in FORMS:
        try:
            made = parse_rule(rule, field="--rule")
        except ConfigError as error:
            if "one of" not in error.rule:
                raise
            raise ConfigError("--rule", error.value, f"must be one of {[*FORMS, *RULES]}") from error
    if not isinstance(made, str) and made.name == "rolora":
        raise ConfigError("--rule", "rolora", "is for rounds, in turns: folders have no round; use ffa or exact")
    choice = MergeOptions(rule=made, space=space, rank=rank, energy=energy)
    if space not in ("factors", PRODUCT):
        raise ConfigError("--space", space, "one of ['factors', 'product']")
    if space == PRODUCT and choice.elementwise is None:
        raise ConfigError("--space", space, f"must be factors: {rule} works on products by itself")
    if rank is not None and rank < 1:
        raise ConfigError("--rank", rank, "must be at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError("--energy", energy, "must be above 0, at most 1")
    if rank is not None and energy is not None:
        raise ConfigError("--energy", energy, "must not be given together with --rank")
    truncates = made in (EXACT, FEDEX) or space == PRODUCT
    for name, value in (("--rank", rank), ("--energy", energy)):
        if value is not None and not truncates:
            raise ConfigError(name, value, f"is for exact, fedex and --space product: {rule} has a rank of its own")
    if space == PRODUCT and rank is None and energy is None:
        raise ConfigError("--rank", "missing", "must be given, or --energy: the merged products have full rank")
    return choice


@dataclass(frozen=True, kw_only=True)
class ModuleFactors:
    """Factors of one module from the sites that have it, float32; scaling is a part of the weight."""

    name: str
    shape: tuple[int, int]
    members: Sequence[int]  # numbers of the sites
    terms: Sequence[Term]
    weights: Floats  # of all sites, they add up to 1

    @property
    def weighted(self) -> list[Term]:
        """Terms of the weighted sum."""
        return [
            Term(t.weight * float(self.weights[i]), t.b, t.a) for i, t in zip(self.members, self.terms, strict=True)
        ]


@dataclass(frozen=True)
class Merged:
    """One pair of factors, and what was cut off, relative to what the form would keep at full rank."""

    b: Floats
    a: Floats
    error: float = 0.0


def merged(held: ModuleFactors, choice: MergeOptions) -> Merged:
    """The pair of a form or a LoRA rule.

    Raises:
        ConfigError: the form needs equal ranks, or an equal A.
    """
    match choice.rule:
        case str(name) if name == EXACT:
            return shortened(spectrum(held.weighted, held.shape), choice)
        case str(name) if name == FLORA:
            terms = held.weighted
            return Merged(
                np.hstack([t.weight * np.asarray(t.b, np.float64) for t in terms]),
                np.vstack([np.asarray(t.a, np.float64) for t in terms]),
            )
        case Modular() as rule:
            if rule.name == "ffa":
                _check_frozen(held)
            a, b = rule.pair(_module(held, rule.name), 1)
            return Merged(b, a)
        case _:
            return _fedex(held, choice)


def shortened(found: Spectrum, choice: MergeOptions) -> Merged:
    """Balanced factors of the rank that was asked for; at least 1, since PEFT has no rank 0."""
    cut = found.truncated(max(choice.rank_of(found), 1))
    return Merged(cut.b, cut.a, cut.error)


def _fedex(held: ModuleFactors, choice: MergeOptions) -> Merged:
    module = _module(held, FEDEX)
    a = sum((w * own for w, (own, _) in zip(module.weights, module.factors, strict=True)), np.zeros_like(module.a0))
    b = sum((w * own for w, (_, own) in zip(module.weights, module.factors, strict=True)), np.zeros_like(module.b0))
    rank = a.shape[0]
    if choice.rank is not None and choice.rank < rank:
        raise ConfigError("--rank", choice.rank, f"must be at least {rank}, the rank of the means, for fedex")
    found = spectrum([*held.weighted, Term(-1.0, b, a)], held.shape)
    whole = float(np.linalg.norm(spectrum(held.weighted, held.shape).values))
    floor = whole * max(held.shape) * float(np.finfo(np.float64).eps)
    real = int(np.count_nonzero(found.values > floor))  # the residual may be nothing but rounding
    cut = found.truncated(min(choice.rank_of(found, taken=rank), real))
    lost = cut.error * float(np.linalg.norm(found.values))
    return Merged(np.hstack([b, cut.b]), np.vstack([a, cut.a]), lost / whole if whole else 0.0)


def _module(held: ModuleFactors, rule: str) -> Module:
    """Factors for a rule of rounds: scaling is in B, and the mean A of those that have the module stands for the rest.

    So a site without the module sends a zero update, and does not pull A towards zero.
    """
    ranks = sorted({t.b.shape[1] for t in held.terms})
    if len(ranks) > 1:
        rule_text = f"have ranks {ranks} in {held.name}: it needs equal ranks; use exact, or --space product"
        raise ConfigError("--rule", rule, f"the adapters {rule_text}")
    here = held.weights[list(held.members)]
    share = here / here.sum() if here.sum() else np.full(len(here), 1 / len(here))
    rank, (rows, columns) = ranks[0], held.shape
    mean_a = np.zeros((rank, columns))
    for weight, term in zip(share, held.terms, strict=True):
        mean_a += weight * np.asarray(term.a, np.float64)
    factors = [(mean_a, np.zeros((rows, rank)))] * len(held.weights)
    for i, term in zip(held.members, held.terms, strict=True):
        factors[i] = (np.asarray(term.a, np.float64), term.weight * np.asarray(term.b, np.float64))
    return Module(held.name, mean_a, np.zeros((rows, rank)), factors, held.weights)


def _check_frozen(held: ModuleFactors) -> None:
    if any(t.a.shape != held.terms[0].a.shape or (t.a != held.terms[0].a).any() for t in held.terms):
        rule = f"needs the same A in all adapters, as FFA-LoRA freezes it: they differ in {held.name}; use exact"
        raise ConfigError("--rule", "ffa", rule)
