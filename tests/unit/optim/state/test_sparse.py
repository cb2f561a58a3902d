"""Moments of chosen entries: how they move, and which matrices can have them."""

import pytest
import torch

from fedcompress.errors import ConfigError
from fedcompress.optim.state.sparse import check_indexable, move_moments


def test_moving_moments_is_the_way_through_a_dense_matrix() -> None:
    made = torch.Generator().manual_seed(0)
    for _ in range(20):
        old, new = (torch.randperm(50, generator=made)[:20].sort().values.to(torch.int32) for _ in range(2))
        state = {"m": torch.randn(20, generator=made), "v": torch.rand(20, generator=made), "places": old}
        got = move_moments(dict(state), new)
        for key in ("m", "v"):
            dense = torch.zeros(50)
            dense[old.long()] = state[key]
            assert torch.equal(got[key], dense[new.long()])
    assert move_moments({}, new) == {"places": new}


def test_a_matrix_whose_positions_do_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="2\\^31"):
        check_indexable("lift", "w", (1 << 16, 1 << 15))
