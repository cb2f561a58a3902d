"""``fedcompress site status`` against a served worker with a stand-in for its rank."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.commands.common import read_worker_status
from clients.commands.status import Options, run, status_lines
from clients.commands.supervisor import up_lock
from clients.network.connection import ConnectionWatch
from clients.state.counters import Counters
from clients.worker.main import lease
from fedcompress.errors import ConfigError, TrainingError
from fedcompress.formatting import duration, size
from fedcompress.proto.v1 import worker_pb2
from fedcompress.storage.locks import hold
from tests.unit.clients.worker.test_service import START, FakeRank, Worker, task, train


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path, 1)
    yield worker
    worker.server.stop(0).wait()
    worker.session.close()
    worker.counters.close()


def facts(worker: Worker, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(Options(site=str(worker.file), as_json=True)) == 0
    return json.loads(capsys.readouterr().out)


def test_a_round_is_followed_and_counted(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        rank.progress(phase="train", step=3, steps=4, loss=0.5)
        entered.set()
        release.wait(timeout=60)
        return {**train(rank, job), "model_loads": 1.0}

    rank = worker.rank(behave=slow)
    asked = threading.Thread(target=lambda: worker.train(task(1)))
    asked.start()
    assert entered.wait(timeout=20)
    deadline = time.monotonic() + 10
    while (found := facts(worker, capsys))["phase"] != "train" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (found["step"], found["steps"], found["loss"], found["run"], found["round"]) == (3, 4, 0.5, "run", 1)
    assert (found["running"], found["ranks_ready"], found["bytes_received"]) == (True, 1, len(START))
    assert run(Options(site=str(worker.file))) == 0
    shown = capsys.readouterr().out
    assert "run run round 1: train 3/4 loss 0.5000" in shown
    assert "75 %" in shown
    release.set()
    asked.join(timeout=30)
    while not (found := facts(worker, capsys))["bytes_sent"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (found["phase"], found["model_loads"]) == ("idle", 1)
    (row,) = found["traffic"]
    assert (row["run"], row["received_bytes"], row["requests"], row["replies"]) == ("run", len(START), 1, 1)
    assert row["sent_bytes"] == found["bytes_sent"] > 0
    rank.die()


def test_the_last_error_survives_a_restart(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        raise TrainingError("nan-loss", "step 1\nof rows \x1b[31m")

    rank = worker.rank(behave=refuse)
    with pytest.raises(TrainingError):
        worker.train(task(1))
    rank.die()
    again = Counters(worker.site.state_dir / "session")
    failure = again.last_failure()
    again.close()
    assert failure is not None
    assert (failure.run, failure.round, failure.code) == ("run", 1, "nan-loss")
    found = facts(worker, capsys)
    assert abs(found["last_error_at"] - time.time()) < 60
    assert run(Options(site=str(worker.file))) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("last error")]
    assert "run run round 1: nan-loss" in line
    assert "\\x1b[31m" in line


def test_no_worker_and_a_held_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worker = Worker(tmp_path, 1)
    worker.server.stop(0).wait()
    worker.session.close()
    worker.counters.close()
    assert read_worker_status(worker.site.state_dir) is None
    assert run(Options(site=str(worker.file))) == 1
    assert "no worker runs" in capsys.readouterr().out
    with lease(worker.site.state_dir):
        assert run(Options(site=str(worker.file), as_json=True)) == 1
        found = json.loads(capsys.readouterr().out)
        assert (found["running"], found["held_by"]) == (False, os.getpid())
        assert "does not answer" in found["reason"]
    with pytest.raises(ConfigError, match="site init"):
        run(Options(site=str(tmp_path / "absent.toml")))


def test_a_lost_connection_is_said_while_up_runs(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    """Notes of an `up` that has ended do not count."""
    state = worker.site.state_dir
    watch = ConnectionWatch(state, state / "supernode.log", address="h:9", target=("no-such-host.invalid", 9))
    (state / "supernode.log").write_text("WARNING : Connection attempt failed, retrying in 0.79 seconds")
    watch.look()
    assert facts(worker, capsys)["connection"] is None
    with hold(up_lock(state), "held by"):
        found = facts(worker, capsys)["connection"]
        assert (found["address"], found["connected"], found["kind"]) == ("h:9", False, "name")
        assert "the name is not known here" in found["advice"]
        assert abs(found["since"] - time.time()) < 60
        assert run(Options(site=str(worker.file))) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("connected")]
    assert "no connection to h:9 since" in line
    assert f"kept up by `site up`, pid {os.getpid()}" in line


def test_gpus_and_figures_for_people() -> None:
    assert [duration(s) for s in (5, 65, 3700, 200_000)] == ["5 s", "1 min 5 s", "1 h 1 min", "2 d 7 h"]
    assert [size(n) for n in (0, 1023, 1536, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    reply = worker_pb2.StatusReply(site="x", phase="idle")
    reply.gpus.add(index=0, name="H200", total_bytes=1 << 30, used_bytes=1 << 20)
    assert any("0 H200: 1.0 MiB of 1.0 GiB" in line for line in status_lines(reply))
