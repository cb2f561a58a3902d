"""How sites agree, and what a merge lost, from factors alone: no matrix is formed but a few sampled rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedcompress.files.merge.reduction import Merged, ModuleFactors
from fedcompress.merging.base import Floats
from fedcompress.merging.lowrank import Term, grams, norm

ROWS = 32  # of a product that are sampled for signs, evenly spaced
MAX_SITES = 256  # beyond, the inner products of all pairs are left out


def sign_conflict(held: ModuleFactors) -> float:
    """Share of the sites' nonzero entries whose sign is not that of the weighted sum, in sampled rows.

    0 where all agree; 0.5 is chance. Entries whose sum is zero count as conflict.
    """
    places = np.unique(np.linspace(0, held.shape[0] - 1, ROWS).astype(int))
    changes = [t.weight * (np.asarray(t.b, np.float64)[places] @ t.a) for t in held.terms]
    weights = [float(held.weights[i]) for i in held.members]
    total = sum((w * c for w, c in zip(weights, changes, strict=True)), np.zeros((len(places), held.shape[1])))
    signs, against, nonzero = np.sign(total), 0, 0
    for weight, change in zip(weights, changes, strict=True):
        if weight:
            own = np.sign(change)
            nonzero += int(np.count_nonzero(own))
            against += int(np.count_nonzero(own * (own != signs)))
    return against / nonzero if nonzero else 0.0


@dataclass(kw_only=True)
class Statistics:
    """Collects facts, module by module."""

    weights: Floats
    modules: list[dict[str, Any]] = field(default_factory=list)
    gram: Floats = field(init=False)  # inner products of the sites' changes, over all modules
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # target, what was missed, result

    def __post_init__(self) -> None:
        self.gram = np.zeros((len(self.weights), len(self.weights)))

    @property
    def pairwise(self) -> bool:
        """Whether sites are compared with each other."""
        return len(self.weights) <= MAX_SITES

    def add(self, held: ModuleFactors, merged: Merged) -> None:
        """One LoRA module, merged."""
        target = norm(held.weighted, held.shape)
        result = [Term(1.0, merged.b, merged.a)]
        missed = norm([*held.weighted, Term(-1.0, merged.b, merged.a)], held.shape)
        sizes = norm(result, held.shape)
        for i, value in enumerate((target, missed, sizes)):
            self.squares[i] += value**2
        row: dict[str, Any] = {
            "name": held.name,
            "shape": list(held.shape),
            "rank": merged.a.shape[0],
            "ranks": [t.b.shape[1] for t in held.terms],
            "sites": len(held.members),
            "truncation_error": merged.error,
            "merge_error": _ratio(missed, target),
            "norm": sizes,
            "mean_norm": target,
            "sign_conflict": sign_conflict(held),
        }
        if self.pairwise:
            own = np.zeros_like(self.gram)
            own[np.ix_(list(held.members), list(held.members))] = grams(held.terms)
            self.gram += own
            row |= {"site_norms": _norms(own), "contribution": contribution(own, self.weights)}
        self.modules.append(row)

    def facts(self) -> dict[str, Any]:
        """Over all modules, as JSON."""
        target, missed, size = (math.sqrt(s) for s in self.squares)
        out: dict[str, Any] = {"merge_error": _ratio(missed, target), "norm": size, "mean_norm": target}
        if self.pairwise:
            out |= {
                "site_norms": _norms(self.gram),
                "contribution": contribution(self.gram, self.weights),
                "cosines": cosines(self.gram),
            }
        return out


def _ratio(missed: float, target: float) -> float | None:
    """Relative error; None where the target is zero and was missed, since JSON has no infinity."""
    if target:
        return missed / target
    return None if missed else 0.0


def _norms(gram: Floats) -> list[float]:
    norms: list[float] = np.sqrt(np.maximum(np.diag(gram), 0)).tolist()
    return norms


def cosines(gram: Floats) -> list[list[float]]:
    """Cosine of each pair of sites; 0 with a site that changed nothing."""
    norms = np.array(_norms(gram))
    scale = np.outer(norms, norms)
    out = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    rows: list[list[float]] = np.clip(out, -1, 1).tolist()
    return rows


def contribution(gram: Floats, weights: Floats) -> list[float]:
    """``<w_i D_i, M> / |M|^2`` for each site: they add up to 1, and one that pulls against the rest is negative."""
    along = weights * (gram @ weights)
    whole = float(along.sum())
    shares: list[float] = (along / whole if whole > 0 else np.zeros_like(along)).tolist()
    return shares
