"""Slow twins of the elementwise rules: loops over Python numbers, sorted lists, fractions for elections.

Updates are lists of dicts from tensor name to a list of floats, weights are integers.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

from tests.unit.codecs.range_reference import philox

Update = dict[str, list[float]]
Scopes = dict[str, list[tuple[str, int]]]
TIE = Fraction(1, 1 << 40)


def places_of(updates: list[Update], scope: str) -> Scopes:
    """Entries that are ranked together."""
    by_tensor = {name: [(name, p) for p in range(len(values))] for name, values in updates[0].items()}
    return by_tensor if scope == "tensor" else {"all": [p for places in by_tensor.values() for p in places]}


def shares(weights: list[int]) -> list[float]:
    return [w / sum(weights) for w in weights]


def count_of(density: float, size: int) -> int:
    return math.ceil(Fraction(repr(density)) * size)


def trimmed(update: Update, density: float, scope: str, gamma: float = 0.0) -> Update:
    """The ``density`` largest without the ``gamma`` largest; equals of the last that stays, stay."""
    out = {name: [0.0] * len(values) for name, values in update.items()}
    for places in places_of([update], scope).values():
        order = sorted((abs(update[n][p]) for n, p in places), reverse=True)
        if not order:
            continue
        low = order[count_of(density, len(order)) - 1]
        high = order[math.floor(Fraction(repr(gamma)) * len(order))]
        for n, p in places:
            if low <= abs(update[n][p]) <= high:
                out[n][p] = update[n][p]
    return out


def mean(updates: list[Update], weights: list[int]) -> Update:
    part = shares(weights)
    return {
        n: [math.fsum(w * u[n][p] for w, u in zip(part, updates, strict=True)) for p in range(len(values))]
        for n, values in updates[0].items()
    }


def elected(values: list[float], weights: list[int], election: str) -> float:
    """Mean of the entries that have the elected sign."""
    terms = [(w, Fraction(v)) for w, v in zip(weights, values, strict=True)]
    votes = [w * (v if election == "mass" else (v > 0) - (v < 0)) for w, v in terms]
    if abs(sum(votes)) <= TIE * sum(abs(v) for v in votes):
        return 0.0
    sign = 1 if sum(votes) > 0 else -1
    agree = [(w, v) for w, v in terms if v * sign > 0]
    weight = sum(w for w, _ in agree)
    return float(sum(w * v for w, v in agree) / weight) if weight else 0.0


def ties(updates: list[Update], weights: list[int], density: float, scope: str, election: str) -> Update:
    return vote([trimmed(u, density, scope) for u in updates], weights, election)


def vote(updates: list[Update], weights: list[int], election: str) -> Update:
    return {
        n: [elected([u[n][p] for u in updates], weights, election) for p in range(len(values))]
        for n, values in updates[0].items()
    }


def breadcrumbs(updates: list[Update], weights: list[int], beta: float, gamma: float, scope: str) -> Update:
    density = float(1 - Fraction(repr(beta)))
    return mean([trimmed(u, density, scope, gamma) for u in updates], weights)


def dare_masks(updates: list[Update], density: float, seed: int, round_: int) -> list[dict[str, list[bool]]]:
    """From a Philox in Python integers."""
    out = []
    for i, update in enumerate(updates):
        mask = {}
        for name, values in update.items():
            label = f"{seed}/dare/{round_}/{i}/{name}".encode()
            key = int.from_bytes(hashlib.sha256(label).digest()[:16], "little")
            raw = philox(key, len(values) // 2 + 1)
            halves = [half for word in raw for half in (word & 0xFFFFFFFF, word >> 32)]
            mask[name] = [density == 1 or halves[p] < math.floor(density * 2**32) for p in range(len(values))]
        out.append(mask)
    return out


def dared(updates: list[Update], density: float, q: float, seed: int, round_: int = 1) -> list[Update]:
    masks = dare_masks(updates, density, seed, round_)
    return [
        {n: [v / q if mask[n][p] else 0.0 for p, v in enumerate(values)] for n, values in update.items()}
        for update, mask in zip(updates, masks, strict=True)
    ]


def rank_shares(values: list[float]) -> list[float]:
    """Ranks of magnitudes from 0 to 1; equal ones share the middle of theirs."""
    sizes = [abs(v) for v in values]
    if len(values) == 1:
        return [0.5]
    return [(sum(s < v for s in sizes) + sum(s <= v for s in sizes) - 1) / 2 / (len(values) - 1) for v in sizes]


def della_kept(updates: list[Update], density: float, epsilon: float, seed: int, round_: int = 1) -> list[Update]:
    """What is kept, scaled, from a Philox in Python integers."""
    out = []
    for i, update in enumerate(updates):
        kept = {}
        for name, values in update.items():
            key = int.from_bytes(hashlib.sha256(f"{seed}/della/{round_}/{i}/{name}".encode()).digest()[:16], "little")
            raw = philox(key, len(values) // 2 + 1)
            halves = [half for word in raw for half in (word & 0xFFFFFFFF, word >> 32)]
            keep = [density + epsilon * (2 * r - 1) for r in rank_shares(values)] if values else []
            kept[name] = [
                v / p if halves[k] < math.floor(p * 2**32) else 0.0
                for k, (v, p) in enumerate(zip(values, keep, strict=True))
            ]
        out.append(kept)
    return out


def rescaled(before: Update, after: Update, norm: str) -> Update:
    """Each tensor with the norm of before."""
    sizes = {
        "l1": lambda v: math.fsum(abs(x) for x in v),
        "l2": lambda v: math.sqrt(math.fsum(x * x for x in v)),
        "linf": lambda v: max((abs(x) for x in v), default=0.0),
    }[norm]
    out = {}
    for name, values in after.items():
        left = sizes(values)
        out[name] = [x * sizes(before[name]) / left for x in values] if left else values
    return out


def sparse_mean(updates: list[Update], weights: list[int], lambda_: float) -> Update:
    out = mean(updates, weights)
    for name, values in out.items():
        for p in range(len(values)):
            sent = sum(w for w, u in zip(shares(weights), updates, strict=True) if u[name][p] != 0)
            values[p] = values[p] / (1 - lambda_ + lambda_ * sent) if sent else 0.0
    return out


def unit(value: float, low: float, high: float) -> float:
    return 1.0 if low == high else (value - low) / (high - low)


def pcb(
    updates: list[Update], weights: list[int], ratio: float, clip: float, scope: str, *, importance: bool = True
) -> Update:
    """``importance=False`` leaves out the factor of magnitudes."""
    out = {n: [0.0] * len(v) for n, v in updates[0].items()}
    part, sites = shares(weights), len(updates)
    for places in places_of(updates, scope).values():
        if not places:
            continue
        scales, clipped = [], []
        for update in updates:
            order = sorted(abs(update[n][p]) for n, p in places)
            cut = math.floor(clip * len(order))
            low, high = order[cut], order[len(order) - 1 - cut]
            size = [min(max(abs(update[n][p]), low), high) for n, p in places]
            clipped.append(
                [s * ((update[n][p] > 0) - (update[n][p] < 0)) for s, (n, p) in zip(size, places, strict=True)]
            )
            score = []
            for s, (n, p) in zip(size, places, strict=True):
                terms = [sites * w * u[n][p] for w, u in zip(part, updates, strict=True)]
                total = math.fsum(terms) if abs(sum(terms)) > TIE * sum(map(abs, terms)) else 0.0
                own = math.exp(sites * (unit(s, low, high) ** 2 - 1)) if importance else 1.0
                score.append(own * math.tanh(update[n][p] * total))
            scales.append(scaled(score, ratio))
        for at, (n, p) in enumerate(places):
            counts = [w * s[at] for w, s in zip(part, scales, strict=True)]
            if sum(counts) > 0:
                out[n][p] = math.fsum(c * x[at] for c, x in zip(counts, clipped, strict=True)) / math.fsum(counts)
    return out


def scaled(score: list[float], ratio: float) -> list[float]:
    order = sorted(score)
    low, high = order[-count_of(ratio, len(score))], order[-1]
    near = float(TIE) * max(abs(low), abs(high))
    if high - low <= near:
        return [float(high > 0 and s >= low - near) for s in score]
    return [min(max((s - low) / (high - low), 0.0), 1.0) for s in score]


def softmax(values: list[float]) -> list[float]:
    terms = [math.exp(v - max(values)) for v in values]
    total = math.fsum(terms)
    return [t / total for t in terms]


def norm(values: list[float]) -> list[float]:
    return [unit(v, min(values), max(values)) for v in values]


def pcb_paper(updates: list[Update], weights: list[int], ratio: float, scope: str) -> Update:
    out = {n: [0.0] * len(v) for n, v in updates[0].items()}
    part, sites = shares(weights), len(updates)
    for places in places_of(updates, scope).values():
        if not places:
            continue
        rows = [[u[n][p] for n, p in places] for u in updates]
        counted = []
        for row in rows:
            own = softmax([sites * v for v in norm([x * x for x in row])])
            others = [softmax(norm([x * y for x, y in zip(row, other, strict=True)])) for other in rows]
            inter = [math.fsum(w * o[at] for w, o in zip(part, others, strict=True)) for at in range(len(places))]
            score = [a * b if any(row) else 0.0 for a, b in zip(own, inter, strict=True)]
            level = sorted(score)[-count_of(ratio, len(score))]
            counted.append([s if s >= level * (1 - float(TIE)) else 0.0 for s in score])
        for at, (n, p) in enumerate(places):
            counts = [w * c[at] for w, c in zip(part, counted, strict=True)]
            if sum(counts) > 0:
                out[n][p] = math.fsum(c * r[at] for c, r in zip(counts, rows, strict=True)) / math.fsum(counts)
    return out
