"""Chunks that are short for their link, and Flower's word that it heeds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from clients.network.link_speed import CHUNK_SECONDS, FLOWER_CHUNK, LEAST_CHUNK, UNKNOWN_CHUNK, Link
from fedcompress.errors import ConfigError

READ = """
import json
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as chunk
from flwr.supercore.constant import FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS as pulls
from flwr.supercore.constant import FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES as pushes
from flwr.app import Array
print(json.dumps([chunk, pushes, pulls, len(Array("uint8", (200_000,), "x", bytes(range(250)) * 800).slice_array())]))
"""


@pytest.mark.parametrize("mbit", [0.1, 0.25, 1.0, 8.0, 20.0])
def test_a_chunk_takes_its_share_of_time(mbit: float) -> None:
    link = Link(mbit=mbit)
    assert 8 * link.chunk * link.at_once / (mbit * 1e6) == pytest.approx(CHUNK_SECONDS, rel=1e-3)


def test_the_ends_of_the_scale() -> None:
    assert (Link().chunk, Link().at_once) == (UNKNOWN_CHUNK, 1)
    assert (Link(mbit=0.001).chunk, Link(mbit=0.001).at_once) == (LEAST_CHUNK, 1)
    assert (Link(mbit=10_000).chunk, Link(mbit=10_000).at_once) == (FLOWER_CHUNK, 2)


@pytest.mark.parametrize("mbit", [-1.0, float("nan"), float("inf"), 1e7])
def test_a_rate_out_of_range_is_refused(mbit: float) -> None:
    with pytest.raises(ConfigError, match=r"link.mbit: .*: must be from 0 to 1000000"):
        Link(mbit=mbit)


def test_flower_heeds_the_variables() -> None:
    """They are private names of Flower's: a version without them must not pass unseen."""
    done = subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, **Link(mbit=0.25).environment()},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == [62_500, 1, 1, 4]
