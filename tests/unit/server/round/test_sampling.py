"""Which sites a round asks."""

from __future__ import annotations

from server.round.sampling import choose


def test_choose() -> None:
    nodes = [5, 3, 9, 1 << 63]
    assert choose(nodes, 0, 1, 1) == choose(nodes, 9, 1, 1) == sorted(nodes)
    assert choose(nodes, 2, 1, 1) == choose(nodes[::-1], 2, 1, 1)
    picked = {n for r in range(40) for n in choose(nodes, 2, 1, r)}
    assert picked == set(nodes)
