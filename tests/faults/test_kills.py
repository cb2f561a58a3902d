"""kill -9 of real processes, lost disks, cut runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from clients.runtime.paths import socket_path
from fedcompress.demo.federation import Federation
from fedcompress.runtime.process_group import wait_until
from fedcompress.wire import Limits, unpack
from tests.site_support import WorkerSite, metrics_of, run_federation


def nobody() -> None:
    """Nothing that we wait for can end."""


@pytest.mark.timeout(180)
def test_killed_in_the_middle_of_a_round(worker_site: WorkerSite) -> None:
    """kill -9 while training: the relay starts a new worker, the round completes, no rank is left."""
    killed: list[psutil.Process] = []

    def kill_when_training() -> None:
        wait_until(lambda: any("train 1" in line for line in worker_site.log), timeout=90, what="step", alive=nobody)
        killed.extend(worker_site.descendants())
        os.kill(worker_site.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_training)
    killer.start()
    payload, replayed = worker_site.train(worker_site.task(1, steps=24))
    killer.join()
    assert not replayed
    assert killed
    _, alive = psutil.wait_procs(killed, timeout=10)
    assert not alive, "a rank outlived its worker"
    assert any("attempt 1" in line for line in worker_site.log)
    header = unpack(payload, Limits(max_body=1 << 30)).header
    assert header.round == 1
    assert metrics_of(payload)["model_loads"] == 1


@pytest.mark.timeout(120)
def test_worker_ends_with_its_owner(worker_site: WorkerSite) -> None:
    """The owner is killed with -9; worker and ranks end by themselves."""
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    command = [sys.executable, "-m", "clients.worker.main", "--site", str(worker_site.file), "--owner", str(owner.pid)]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = socket_path(worker_site.config.state_dir)
    wait_until(address.exists, timeout=60, what="worker", alive=nobody)
    wait_until(lambda: worker_site.status().ranks_ready == 1, timeout=60, what="ranks", alive=nobody)
    ranks = worker_site.descendants()
    owner.kill()
    owner.wait()
    assert worker.wait(timeout=30) == 0
    _, left = psutil.wait_procs(ranks, timeout=10)
    assert not left


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_worker_and_resumed_coordinator_end_with_the_same_bytes(tmp_path: Path, template: Path) -> None:
    """kill -9 of a worker in round 1; then the run is cut after round 1, and submitted again for two rounds."""
    run_federation(tmp_path / "plain", template, rounds=2)
    killed = []

    def kill_once(federation: Federation, event: dict[str, Any]) -> None:
        if event["event"] == "asked" and not killed:
            lock = federation.folder / "sites" / "site-0" / "worker.lock"
            killed.append(int(lock.read_text()))
            os.kill(killed[0], signal.SIGKILL)

    folder = tmp_path / "killed"
    run_federation(folder, template, rounds=1, on_event=kill_once)
    assert killed
    (folder / "coordinator" / "events.jsonl").unlink()
    events = run_federation(folder, template, rounds=2)
    assert events[0] == {**events[0], "event": "start", "first_round": 2}
    name = "coordinator/adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_site_that_lost_its_state_is_brought_up_to_date(tmp_path: Path, template: Path) -> None:
    """Its state directory is deleted between two submissions; it takes part in the next round."""
    run_federation(tmp_path, template, rounds=1)
    (tmp_path / "coordinator" / "events.jsonl").unlink()
    shutil.rmtree(tmp_path / "sites" / "site-1")
    events = run_federation(tmp_path, template, rounds=2)
    merged = [e["merged"] for e in events if e["event"] == "round"]
    assert merged == [2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_killed_in_the_middle_of_a_round(worker_site: WorkerSite) -> None:
    """kill -9 of a rank while training: the worker starts its ranks afresh, and does the round again by itself."""
    killed: list[int] = []

    def kill_when_training() -> None:
        wait_until(lambda: any("train 1" in line for line in worker_site.log), timeout=90, what="step", alive=nobody)
        ranks = [p for p in worker_site.descendants() if "clients.training.rank" in " ".join(p.cmdline())]
        killed.append(worker_site.pid)
        ranks[0].kill()

    killer = threading.Thread(target=kill_when_training)
    killer.start()
    payload, replayed = worker_site.train(worker_site.task(1, steps=24))
    killer.join()
    assert not replayed
    assert killed == [worker_site.pid], "the worker itself was lost"
    assert any("a rank died" in line for line in worker_site.log)
    assert "steps_done" not in metrics_of(payload), "the round was cut short"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_supernode_killed_in_a_round(tmp_path: Path, template: Path) -> None:
    """kill -9 of a site's SuperNode: the round goes on without it, and under its new id it takes part again."""
    killed: list[int] = []

    def kill_once(federation: Federation, event: dict[str, Any]) -> None:
        if event["event"] != "asked" or event["round"] != 2 or killed:
            return
        config = str(federation.sites["site-1"])
        nodes = [
            p
            for p in psutil.Process().children(recursive=True)
            if p.status() != psutil.STATUS_ZOMBIE
            and config in " ".join(line := p.cmdline())
            and any("flower-supernode" in part for part in line[:3])
        ]
        killed.extend(p.pid for p in nodes)
        for node in nodes:
            node.kill()
        psutil.wait_procs(nodes, timeout=10)
        federation.start_node("site-1", f"127.0.0.1:{federation.port}")

    events = run_federation(tmp_path, template, rounds=4, on_event=kill_once, quorum=1)
    assert killed
    merged = [e["merged"] for e in events if e["event"] == "round"]
    assert merged[0] == 2
    assert merged[-1] == 2, "the site did not come back"
    assert len(merged) == 4
