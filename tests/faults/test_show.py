"""The demo's task by ``fedcompress run``, killed -9 five times: the same SHA-256 as a run that nobody disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcompress.demo import data as demo_data
from fedcompress.demo.run import DemoOptions, run_config, site_files
from fedcompress.runtime.process_group import wait_until
from fedcompress.storage.locks import holder
from server.state_dir import COORDINATOR_LOCK
from tests.deployment import Deployment, call, deployed
from tests.faults.record import record
from tests.integration.test_federation import leftovers

ROUNDS = int(os.environ.get("FEDCOMPRESS_SHOW_ROUNDS", "6"))
TIMEOUT = 2400


class Demo(Deployment):
    """The demo's three sites, model, data and settings."""

    patience = 1000.0

    def write_sites(self, base: Path) -> dict[str, Path]:
        options = DemoOptions(out=self.folder)
        return site_files(options, self.folder, demo_data.model_folder())

    def settings(self) -> dict[str, Any]:
        config = run_config(DemoOptions(out=self.folder), self.folder)
        return {k: v for k, v in config.items() if k not in ("run", "state-dir", "initial-adapter", "rounds")}

    def worker(self, name: str) -> int:
        """Process id of a site's worker."""
        return int((self.files[name].parent / name / "worker.lock").read_text())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's initial adapter."""
    folder = tmp_path_factory.mktemp("base")
    options = DemoOptions(out=folder).demo.template
    call("template", demo_data.model_folder(), "--out", folder / "initial", *options, "--seed=0")
    return folder


@pytest.fixture(scope="module")
def calm(base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the adapter of a run that nobody disturbed."""
    with deployed(tmp_path_factory.mktemp("calm") / "run", base, ROUNDS, kind=Demo) as it:
        return it.finish(it.start("run", it.config, "--json"))


def resumed(it: Demo, run: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """kill -9 of the supervisor; what it has started ends by itself, and the run is begun again."""
    link = it.superlink()
    run.kill()
    run.wait()
    psutil.wait_procs([link], timeout=30)
    lock = it.state / COORDINATOR_LOCK
    wait_until(lambda: not holder(lock), timeout=30, what="end of the coordinator", alive=lambda: None)
    return it.start("run", it.config, "--resume", "--json")


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT)
def test_killed_five_times_the_demo_ends_with_the_same_bytes(tmp_path: Path, base: Path, calm: str) -> None:
    """A worker, the ServerApp, the SuperLink, a SuperNode and the supervisor, each in another round."""
    with deployed(tmp_path / "run", base, ROUNDS, kind=Demo) as it:
        assert isinstance(it, Demo)
        first, second, *_ = it.files
        run = it.start("run", it.config, "--json")
        killed = []
        kills = {
            "worker": lambda: os.kill(it.worker(first), signal.SIGKILL),
            "ServerApp": lambda: os.kill(holder(it.state / COORDINATOR_LOCK), signal.SIGKILL),
            "SuperLink": lambda: it.superlink().kill(),
            "SuperNode": lambda: it.supernode(second).kill(),
        }
        for round_, (what, kill) in enumerate(kills.items(), start=1):
            it.until(lambda number=round_: it.asked(number), f"round {round_}", run)
            kill()
            killed.append(what)
        it.until(lambda: it.asked(5), "round 5", run)
        run = resumed(it, run)
        killed.append("supervisor")
        assert it.finish(run) == calm
        rounds = it.rounds()
    assert [(r["round"], r["merged"]) for r in rounds] == [(n, 3) for n in range(1, ROUNDS + 1)]
    assert leftovers(it.folder) == []
    record("kill", f"demo, {ROUNDS} rounds: {', '.join(killed)}", len(killed), f"same SHA-256, {calm[:16]}")
