"""One site with a real worker: DeepSpeed on MiniLM, through the relay that Flower would use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from clients.worker.paths import socket_path
from fedcompress.adapters import load_adapter
from fedcompress.demo.processes import wait_until
from fedcompress.errors import TrainingError
from fedcompress.pipeline import decode_update
from fedcompress.types import state_digest
from fedcompress.wire import Kind, Limits, unpack
from tests.integration.support import WorkerSite, write_site


def metrics_of(payload: bytes) -> dict[str, float]:
    return dict(unpack(payload, Limits(max_body=1 << 30)).header.metrics)


def nobody() -> None:
    """Nothing that we wait for can end."""


@pytest.mark.timeout(180)
def test_rounds_are_warm_replayed_and_reported(worker_site: WorkerSite) -> None:
    """Two rounds, a repeated one, an evaluation, a bad row: one worker, one model load."""
    first, replayed = worker_site.train(worker_site.task(1))
    assert not replayed
    envelope, update = decode_update(first, worker_site.adapter.layout)
    assert envelope.header.kind is Kind.UPDATE
    assert envelope.header.base_digest == state_digest(worker_site.adapter.layout, worker_site.adapter.tensors)
    assert any(abs(v).max() > 0 for v in update.values())
    pids = [worker_site.pid, *(p.pid for p in worker_site.descendants())]

    again, replayed = worker_site.train(worker_site.task(1))
    assert (again, replayed) == (first, True)

    second, replayed = worker_site.train(worker_site.task(2, merged=(envelope.digest.hex(),)))
    assert not replayed
    assert metrics_of(second)["model_loads"] == 1
    assert metrics_of(second)["seconds_load"] < 0.05 < metrics_of(first)["seconds_load"]
    assert [worker_site.pid, *(p.pid for p in worker_site.descendants())] == pids

    report, _ = worker_site.train(worker_site.task(3, steps=0))
    header = unpack(report, Limits(max_body=0)).header
    assert header.kind is Kind.REPORT
    assert header.metrics["eval_examples"] == 16

    with pytest.raises(TrainingError, match="envelope"):
        worker_site.train(worker_site.task(4), first[:-1] + bytes([first[-1] ^ 1]))
    with pytest.raises(TrainingError, match=r"north-train.jsonl:\d+.label"):
        worker_site.train(worker_site.task(5, labels=(*worker_site.task(5).labels[:2], "Unseen")))
    assert worker_site.status().phase == "idle"


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
def test_second_worker_is_refused(worker_site: WorkerSite) -> None:
    worker_site.spawn()
    command = [sys.executable, "-m", "clients.worker.main", "--site", str(worker_site.file)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2
    (line,) = [text for text in second.stderr.splitlines() if text.startswith("error:")]
    assert f"is held by the worker with pid {worker_site.pid}" in line


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
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_zero_stages_train_alike(tmp_path: object, template: object, optimizer: str) -> None:
    """Two ranks at ZeRO 0, 1, 2 and 3 give the same trained tensors, up to rounding."""
    import numpy as np

    results = {}
    for stage in (0, 1, 2, 3):
        site = WorkerSite(write_site(tmp_path / f"zero{stage}", "north", rows=48, ranks=2, stage=stage), template)  # type: ignore[operator, arg-type]
        try:
            site.train(site.task(1, steps=4, optimizer=optimizer, lr=1e-3))
            results[stage] = load_adapter(site.config.state_dir / "work" / "trained").tensors
        finally:
            site.stop()
    for stage in (1, 2, 3):
        for name, value in results[0].items():
            assert np.allclose(results[stage][name], value, atol=2e-6), (stage, name)
