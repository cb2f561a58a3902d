"""One site with a real worker: DeepSpeed on MiniLM, through the relay that Flower would use."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedcompress.adapters import load_adapter
from fedcompress.config.objective import Classification, objective_json
from fedcompress.errors import TrainingError
from fedcompress.pipeline.updates import decode_update
from fedcompress.types import l2_norm, state_digest, subtract
from fedcompress.wire import Kind, Limits, unpack
from tests.site_support import LABELS, WorkerSite, metrics_of, write_site


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
    mapped = Path(f"/proc/{worker_site.pid}/maps").read_text()
    assert "libtorch" not in mapped, "the worker's own process needs no torch, in no part of a round"

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
        worker_site.train(worker_site.task(5, objective=objective_json(Classification(labels=(*LABELS[:2], "Unseen")))))
    assert worker_site.status().phase == "idle"


@pytest.mark.timeout(120)
def test_second_worker_is_refused(worker_site: WorkerSite) -> None:
    worker_site.spawn()
    command = [sys.executable, "-m", "clients.worker.main", "--site", str(worker_site.file)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2
    (line,) = [text for text in second.stderr.splitlines() if text.startswith("error:")]
    assert f"is held by the worker with pid {worker_site.pid}" in line


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_idle_ranks_outlast_the_collective_timeout(tmp_path: Path, template: Path) -> None:
    """Two ranks idle for twice the timeout of a collective, and train again in the same processes."""
    site = WorkerSite(write_site(tmp_path, "north", rows=48, ranks=2, timeout=8), template)
    try:
        site.train(site.task(1))
        pids = [p.pid for p in site.descendants()]
        time.sleep(16)  # the idle time is what is tested
        payload, _ = site.train(site.task(2))
        assert [p.pid for p in site.descendants()] == pids
        assert metrics_of(payload)["model_loads"] == 1
    finally:
        site.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 1.0), ("adamw", 1e-3)])
def test_zero_stages_train_alike(tmp_path: Path, template: Path, optimizer: str, lr: float) -> None:
    """Two ranks at ZeRO 0, 1, 2 and 3 give the same update, up to the order of float32 sums."""
    trained = {}
    for stage in (0, 1, 2, 3):
        site = WorkerSite(write_site(tmp_path / f"zero{stage}", "north", rows=48, ranks=2, stage=stage), template)
        try:
            site.train(site.task(1, steps=4, optimizer=optimizer, lr=lr))
            trained[stage] = site.trained()
        finally:
            site.stop()
    start = load_adapter(template).tensors
    update = l2_norm(subtract(trained[0], start).values())
    assert update > 0.01
    for stage in (1, 2, 3):
        assert l2_norm(subtract(trained[stage], trained[0]).values()) < 1e-4 * update, stage
