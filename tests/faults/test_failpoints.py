"""kill -9 of the real process at each failpoint, through real Flower: the same adapter as a run that nobody killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcompress.runtime.process_group import wait_until
from fedcompress.storage.failpoints import FAILPOINTS, ONCE, VARIABLE
from tests.deployment import ENVIRONMENT, deployed, write_base
from tests.faults.record import record
from tests.integration.test_federation import leftovers

# The second time that a place is reached is in the second round, for most.
SECOND = {"server.asked": 4, "server.reply": 4, "server.admitted": 4, "server.blob": 6, "server.before-export": 1}
SECOND |= {"site.blob": 5}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and the initial adapter of a run on it."""
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def calm(base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the adapter of two rounds that nobody disturbed."""
    with deployed(tmp_path_factory.mktemp("calm") / "run", base, 2) as it:
        return it.finish(it.start("run", it.config, "--json"))


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("place", FAILPOINTS)
def test_killed_at(place: str, tmp_path: Path, base: Path, calm: str) -> None:
    killed = tmp_path / "killed"
    armed = {VARIABLE: f"{place}:{SECOND.get(place, 2)}", ONCE: str(killed)}
    at_sites = armed if place.startswith("site.") else {}
    at_server = {**ENVIRONMENT, **({} if at_sites else armed)}
    with deployed(tmp_path / "run", base, 2, at_sites) as it:
        digest = it.finish(it.start("run", it.config, "--json", environment=at_server))
        assert killed.read_text() == place, "nothing was killed"
        assert digest == calm
    # a worker that a ClientApp has started again sees its SuperNode end a little later
    wait_until(lambda: not leftovers(tmp_path), timeout=30, what="all processes of the run to end", alive=lambda: None)
    record("kill", f"{place}, through Flower", 1, "same adapter as a run that nobody killed")
