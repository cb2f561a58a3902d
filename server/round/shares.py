"""Keeps the shares of sites in a run whose sites go on while others are merged: nobody has more than two turns of n.

A turn is as many versions as it takes until each of the connected sites could have been merged once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from server.ledger.ledger import SiteRow

MOST = 2  # updates of a site among as many of the last merged updates as there are sites


def versions_per_turn(connected: int, buffer: int) -> int:
    """Return how many versions are published until each site could have been merged once.

    Args:
        connected: sites that are connected.
        buffer: updates that make a version; 0: those of all sites do.
    """
    return max(math.ceil(connected / buffer), 1) if buffer else 1


def find_nodes_over_share(sites: Iterable[SiteRow], merged: Sequence[str]) -> set[int]:
    """Return the nodes of sites that have had their share: where enough others are there, these are merged first.

    Args:
        sites: what is known of sites.
        merged: sites of the last merged updates, one fewer than there are sites connected.
    """
    counts = Counter(merged)
    return {site.node for site in sites if counts[site.site] >= MOST}
