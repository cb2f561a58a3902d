"""Which of the connected nodes are sampled for a round, reproducibly from the run's seed and the round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedcompress.merging.weighting import CAP, limit_weights
from server.ledger.ledger import SiteRow


def choose_nodes(
    nodes: Sequence[int], count: int, seed: int, round_: int, weights: Mapping[int, float] | None = None
) -> list[int]:
    """Choose nodes without replacement.

    Equal nodes, weights, seed and round give an equal choice.

    Args:
        nodes: ids.
        count: how many to choose; 0, or as many as there are or more, chooses all.
        seed: of the run.
        round_: number of the round.
        weights: by node, how likely each is to be chosen first; uniform without them. A node that is not in them, or
            has a weight of 0, counts as the mean of the others, so that newcomers are asked.

    Returns:
        Ids, in ascending order.
    """
    ordered = sorted(nodes)
    if not 0 < count < len(ordered):
        return ordered
    generator = np.random.Generator(np.random.Philox(key=[seed, round_]))
    probabilities = None
    if weights is not None:
        known = [weight for node in ordered if (weight := weights.get(node, 0.0)) > 0]
        mean = sum(known) / len(known) if known else 1.0
        values = np.array([weights.get(node, 0.0) or mean for node in ordered])
        probabilities = values / values.sum()
    chosen = generator.choice(len(ordered), size=count, replace=False, p=probabilities)
    return sorted(ordered[i] for i in chosen)


def compute_sampling_weights(policy: str, sites: Sequence[SiteRow]) -> dict[int, float] | None:
    """Compute the sampling weight of each known node.

    With ``data`` it is the training examples of its site, with ``bandwidth`` the bytes per second of its last exchange;
    None stands for uniform sampling. Both are claims of the site, the latter by the seconds that it says to have
    worked, so that no site counts more than ``limit_weights`` lets it.
    """
    match policy:
        case "data":
            claims = {site.node: float(site.examples) for site in sites}
        case "bandwidth":
            claims = {site.node: site.rate for site in sites}
        case _:
            return None
    known = {node: claim for node, claim in claims.items() if claim > 0}
    if known:
        claims |= zip(known, limit_weights(list(known.values()), CAP), strict=True)
    return claims
