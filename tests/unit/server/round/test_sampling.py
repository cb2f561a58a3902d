"""Which sites a round asks."""

from __future__ import annotations

from server.round.sampling import choose_nodes


def test_choose() -> None:
    nodes = [5, 3, 9, 1 << 63]
    assert choose_nodes(nodes, 0, 1, 1) == choose_nodes(nodes, 9, 1, 1) == sorted(nodes)
    assert choose_nodes(nodes, 2, 1, 1) == choose_nodes(nodes[::-1], 2, 1, 1)
    picked = {n for r in range(40) for n in choose_nodes(nodes, 2, 1, r)}
    assert picked == set(nodes)
