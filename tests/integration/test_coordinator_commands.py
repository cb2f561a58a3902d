"""``fedcompress run`` on a tiny Llama: killed in every way, stopped, resumed; compared with one left alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from fedcompress.runtime.process_group import wait_until
from fedcompress.storage.locks import holder
from server.state_dir import COORDINATOR_LOCK
from tests.deployment import call, deployed, write_base
from tests.integration.test_federation import leftovers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and the initial adapter of a run on it."""
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of three rounds that nobody disturbed."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    with deployed(folder, base, 3) as it:
        done = it.start("run", it.config, "--json")
        it.until(lambda: done.poll() is not None, "run", done)
        assert done.returncode == 0, (folder / "commands.log").read_text()
    assert leftovers(folder) == []
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_every_way_it_ends_with_the_same_bytes(tmp_path: Path, base: Path, plain: Path) -> None:
    """kill -9 of the ServerApp in round 1, of the SuperLink in round 2, of the supervisor in round 3."""
    with deployed(tmp_path / "run", base, 3) as it:
        first = it.start("run", it.config)
        it.until(lambda: it.asked(1), "round 1", first)
        os.kill(killed := holder(it.state / COORDINATOR_LOCK), signal.SIGKILL)
        it.until(lambda: it.asked(2), "round 2", first)
        assert it.status()["coordinator_pid"] not in (None, killed)
        it.superlink().kill()
        it.until(lambda: it.asked(3), "round 3", first)
        link = it.superlink()
        first.kill()
        first.wait()
        psutil.wait_procs([link], timeout=20)
        assert not link.is_running(), "the SuperLink outlived its supervisor"

        lock = it.state / COORDINATOR_LOCK
        wait_until(lambda: not holder(lock), timeout=20, what="end of the coordinator", alive=lambda: None)
        assert it.status()["state"] == "interrupted"
        refused = call("run", it.config, code=2)
        assert "2 of 3 rounds are done: go on with --resume" in refused.stderr
        assert refused.stderr.count("\n") == 1
        second = it.start("run", it.config, "--resume", "--json")
        it.until(lambda: second.poll() is not None, "run", second)
        assert second.returncode == 0, (it.folder / "commands.log").read_text()
        assert it.status()["state"] == "finished"
        again = call("run", it.config)
        assert "is finished: 3 rounds" in again.stderr
    expected = hashlib.sha256((plain / "state" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert it.digest() == expected
    rounds = it.rounds()
    assert [(r["round"], r["asked"], r["merged"]) for r in rounds] == [(1, 2, 2), (2, 2, 2), (3, 2, 2)]
    assert leftovers(it.folder) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_after_a_round_and_resumed(tmp_path: Path, base: Path, plain: Path) -> None:
    """`stop` lets the round end; `stop --now` does not; neither changes a byte."""
    with deployed(tmp_path / "run", base, 3) as it:
        first = it.start("run", it.config)
        it.until(lambda: it.asked(1), "round 1", first)
        last = int(call("stop", it.config).stdout.split("stops after round ")[1])
        assert last in (1, 2), "the command took longer than two rounds"
        it.until(lambda: first.poll() is not None, "stop", first)
        assert first.returncode == 0
        found = it.status()
        assert (found["state"], found["rounds_done"], found["stop_requested"]) == ("stopped", last, False)
        second = it.start("run", it.config, "--resume")
        it.until(lambda: it.asked(last + 1), "the next round", second)
        stopped = json.loads(call("stop", it.state, "--now", "--json").stdout)
        assert (stopped["now"], stopped["killed"]) == (True, False)
        assert second.wait(timeout=30) == 130
        assert call("stop", it.state, code=1).stdout.endswith("it is interrupted\n")
        third = it.start("run", it.config, "--resume")
        it.until(lambda: third.poll() is not None, "run", third)
        assert third.returncode == 0
    assert it.digest() == hashlib.sha256((plain / "state/adapter/adapter_model.safetensors").read_bytes()).hexdigest()
    assert leftovers(it.folder) == []
