"""Which of the connected nodes are asked in a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from server.ledger.ledger import SiteRow


def choose_nodes(
    nodes: Sequence[int], count: int, seed: int, round_: int, weights: Mapping[int, float] | None = None
) -> list[int]:
    """``count`` nodes without replacement (0 or too many: all), in ascending order.

    Equal nodes, weights, seed and round give an equal choice.

    Args:
        nodes: ids.
        count: how many.
        seed: of the run.
        round_: of the run.
        weights: how likely each is to be chosen first; uniform without them. A node that is not known, or has a
            weight of 0, counts as the mean of the others, so that newcomers are asked.
    """
    ordered = sorted(nodes)
    if not 0 < count < len(ordered):
        return ordered
    generator = np.random.Generator(np.random.Philox(key=[seed, round_]))
    shares = None
    if weights is not None:
        known = [w for node in ordered if (w := weights.get(node, 0.0)) > 0]
        mean = sum(known) / len(known) if known else 1.0
        values = np.array([weights.get(node, 0.0) or mean for node in ordered])
        shares = values / values.sum()
    return sorted(ordered[i] for i in generator.choice(len(ordered), size=count, replace=False, p=shares))


def sampling_weights(policy: str, sites: Sequence[SiteRow]) -> dict[int, float] | None:
    """Weights of nodes: by training examples, or by bytes a second of the last exchange; None for uniform."""
    match policy:
        case "data":
            return {site.node: float(site.examples) for site in sites}
        case "bandwidth":
            return {site.node: site.rate for site in sites}
        case _:
            return None
