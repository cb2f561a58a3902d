"""Computes how sites agree, and what a merge lost, from factors alone: only a few sampled rows are formed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedcompress.files.merge.reduction import FactorPair, ModuleFactors
from fedcompress.merging.base import Floats
from fedcompress.merging.lowrank import Term, grams, norm

ROWS = 32  # rows of a product that are sampled for signs, evenly spaced
# Columns of a module that are numbers of its change.
FIGURES = ("truncation_error", "merge_error", "norm", "mean_norm", "sign_conflict")
MAX_SITES = 256  # sites up to which the inner products of all pairs of them are computed


def measure_sign_conflict(module: ModuleFactors) -> float:
    """Measure the share of the sites' nonzero entries whose sign is not that of the weighted sum, in sampled rows.

    0 means that all agree; 0.5 is chance. Entries whose sum is zero count as conflict.
    """
    rows = np.unique(np.linspace(0, module.shape[0] - 1, ROWS).astype(int))
    changes = [t.weight * (np.asarray(t.b, np.float64)[rows] @ t.a) for t in module.terms]
    weights = [float(module.weights[i]) for i in module.members]
    total = np.zeros((len(rows), module.shape[1]))
    for weight, change in zip(weights, changes, strict=True):
        total = total + weight * change
    elected = np.sign(total)
    against = 0
    nonzero = 0
    for weight, change in zip(weights, changes, strict=True):
        if weight:
            own = np.sign(change)
            nonzero += int(np.count_nonzero(own))
            against += int(np.count_nonzero(own * (own != elected)))
    return against / nonzero if nonzero else 0.0


@dataclass(kw_only=True)
class Statistics:
    """Collects the numbers of the report, module by module."""

    weights: Floats  # (sites,): weights of all sites
    is_known: bool = True  # whether changes are B A alone; where they are not, as with DoRA, there are no figures
    modules: list[dict[str, Any]] = field(default_factory=list)  # the report's row of each module
    gram: Floats = field(init=False)  # (sites, sites): inner products of the sites' changes, over all modules
    squared_target: float = 0.0  # squared norm of the mean change, over all modules
    squared_miss: float = 0.0  # squared distance of the result to the mean change
    squared_result: float = 0.0  # squared norm of the result

    def __post_init__(self) -> None:
        self.gram = np.zeros((len(self.weights), len(self.weights)))

    @property
    def is_pairwise(self) -> bool:
        """Return whether sites are compared with each other, so whether there are at most ``MAX_SITES``."""
        return len(self.weights) <= MAX_SITES

    def add(self, module: ModuleFactors, merged: FactorPair) -> None:
        """Add one LoRA module and its merged factors."""
        row: dict[str, Any] = {
            "name": module.name,
            "shape": list(module.shape),
            "rank": merged.a.shape[0],
            "ranks": [t.b.shape[1] for t in module.terms],
            "sites": len(module.members),
            **dict.fromkeys(FIGURES),
        }
        self.modules.append(row)
        if self.is_known:
            self._measure(row, module, merged)

    def _measure(self, row: dict[str, Any], module: ModuleFactors, merged: FactorPair) -> None:
        """Put the figures of a module into its row, and add them to the sums."""
        target = norm(module.weighted, module.shape)
        missed = norm([*module.weighted, Term(-1.0, merged.b, merged.a)], module.shape)
        size = norm([Term(1.0, merged.b, merged.a)], module.shape)
        self.squared_target += target**2
        self.squared_miss += missed**2
        self.squared_result += size**2
        row |= {
            "truncation_error": merged.error,
            "merge_error": _relative_error(missed, target),
            "norm": size,
            "mean_norm": target,
            "sign_conflict": measure_sign_conflict(module),
        }
        if self.is_pairwise:
            own = np.zeros_like(self.gram)
            own[np.ix_(list(module.members), list(module.members))] = grams(module.terms)
            self.gram += own
            row |= {"site_norms": _norms(own), "contribution": compute_contribution(own, self.weights)}

    def summarize(self) -> dict[str, Any]:
        """Return the numbers over all modules, as they stand in the report; without figures but one that is None."""
        if not self.is_known:
            return {"merge_error": None}
        target = math.sqrt(self.squared_target)
        missed = math.sqrt(self.squared_miss)
        size = math.sqrt(self.squared_result)
        out: dict[str, Any] = {"merge_error": _relative_error(missed, target), "norm": size, "mean_norm": target}
        if self.is_pairwise:
            out |= {
                "site_norms": _norms(self.gram),
                "contribution": compute_contribution(self.gram, self.weights),
                "cosines": compute_cosines(self.gram),
            }
        return out


def _relative_error(missed: float, target: float) -> float | None:
    """Return ``missed / target``; None where the target is zero and was missed, since JSON has no infinity."""
    if target:
        return missed / target
    return None if missed else 0.0


def _norms(gram: Floats) -> list[float]:
    norms: list[float] = np.sqrt(np.maximum(np.diag(gram), 0)).tolist()
    return norms


def compute_cosines(gram: Floats) -> list[list[float]]:
    """Compute the cosine of each pair of sites from their inner products; 0 with a site that changed nothing."""
    norms = np.array(_norms(gram))
    scale = np.outer(norms, norms)
    cosines = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    rows: list[list[float]] = np.clip(cosines, -1, 1).tolist()
    return rows


def compute_contribution(gram: Floats, weights: Floats) -> list[float]:
    """Compute ``<w_i D_i, M> / |M|^2`` of each site, for its change D_i and the weighted mean M of all changes.

    These add up to 1, and that of a site that pulls against the rest is negative. All are 0 if M is zero.
    """
    along = weights * (gram @ weights)
    whole = float(along.sum())
    shares: list[float] = (along / whole if whole > 0 else np.zeros_like(along)).tolist()
    return shares
