"""Norm clipping."""

from __future__ import annotations

import pytest

from fedcompress.errors import ConfigError
from fedcompress.privacy import clip_update
from fedcompress.types import l2_norm
from tests.support import equal, lora_layout, normal

LAYOUT = lora_layout()


def test_a_large_update_gets_the_norm_and_keeps_its_direction() -> None:
    update = normal(LAYOUT, 0)
    clipped, norm = clip_update(update, 2.5)
    assert norm == pytest.approx(l2_norm(update.values()))
    assert l2_norm(clipped.values()) == pytest.approx(2.5, rel=1e-6)
    ratio = {float(r) for n in update for r in (clipped[n] / update[n]).ravel()}
    assert max(ratio) - min(ratio) < 1e-6


def test_a_small_update_is_left_alone() -> None:
    update = normal(LAYOUT, 0)
    assert equal(clip_update(update, 1e6)[0], update)
    zero = {n: 0 * v for n, v in update.items()}
    assert clip_update(zero, 1.0)[1] == 0


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_bad_bound(bound: float) -> None:
    with pytest.raises(ConfigError, match=r"privacy.max_norm"):
        clip_update(normal(LAYOUT, 0), bound)
