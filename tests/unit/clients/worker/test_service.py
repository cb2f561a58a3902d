"""The worker's gRPC service on a real Unix socket. The training ranks are stand-ins in threads:
they speak the real protocol, and write a trained adapter without training."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save_file

from clients import worker_client
from clients.runtime.paths import socket_path
from clients.site import SiteConfig
from clients.state.counters import Counters
from clients.state.site_state import SiteState
from clients.training.job import Job
from clients.worker.main import lease
from clients.worker.rank_group import RankGroup
from clients.worker.service import WorkerService
from fedcompress.adapters import load_adapter
from fedcompress.config.objective import Classification, objective_json
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ProcessError, TrainingError
from fedcompress.pipeline.states import encode_snapshot
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc
from fedcompress.wire import Kind, Limits, unpack
from tests.support import lora_layout, normal
from tests.unit.clients.site_support import write_delta_file

LAYOUT = lora_layout(modules=1)
START = encode_snapshot(normal(LAYOUT, 0), LAYOUT, run="run", version=0)
METRICS = {"train_examples": 7.0, "eval_correct": 1.0, "eval_examples": 2.0, "eval_loss_sum": 0.5}
Behaviour = Callable[["FakeRank", dict[str, Any]], dict[str, float]]


def train(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
    """What a rank does in a job: progress, and a trained adapter from rank 0."""
    rank.progress(phase="train", step=1, steps=1, loss=0.25)
    if rank.number == 0 and job["task"]["steps"]:
        adapter = load_adapter(Path(job["published"]))
        delta = {n: (v + np.float32(0.1)).astype(np.float32) - v for n, v in adapter.tensors.items()}
        write_delta_file(Job.from_json(json.dumps(job)), delta)
    return METRICS


class FakeRank(threading.Thread):
    """Attends a worker like clients.training.rank does."""

    def __init__(self, address: str, number: int, pid: int, behave: Behaviour = train) -> None:
        super().__init__(daemon=True)
        self.number, self.pid, self.behave = number, pid, behave
        self.jobs = 0
        self._channel = grpc.insecure_channel(address)
        self._stub = worker_pb2_grpc.RanksStub(self._channel)
        self._id = 0

    def run(self) -> None:
        try:
            for command in self._stub.Attend(worker_pb2.RankHello(rank=self.number, pid=self.pid)):
                self.jobs += 1
                self._id = command.id
                try:
                    result = self.behave(self, json.loads(command.job_json))
                except TrainingError as error:
                    self.report(error=f"{error.code}: {error}")
                else:
                    self.report(result_json=json.dumps(result))
        except (grpc.RpcError, ValueError):
            return

    def report(self, **fields: Any) -> None:
        self._stub.Report(worker_pb2.RankReport(rank=self.number, id=self._id, **fields))

    def progress(self, **fields: Any) -> None:
        self.report(progress=worker_pb2.Progress(**fields))

    def die(self) -> None:
        """The process is gone: its stream breaks."""
        self._channel.close()


class Worker:
    """A served worker with fake ranks."""

    def __init__(self, folder: Path, ranks: int, threads: int = 16, more: str = "") -> None:
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "config.json").write_text("{}")
        save_file({"w": np.ones(2, np.float32)}, folder / "model" / "model.safetensors")
        (folder / "rows.jsonl").write_text("")
        self.file = folder / "site.toml"
        self.file.write_text(
            '[site]\nname="north"\nstate_dir="state"\n[model]\npath="model"\n'
            '[data]\ntrain="rows.jsonl"\nheldout="rows.jsonl"\n' + more
        )
        self.site = SiteConfig.load(self.file)
        self.session = SiteState(self.site.state_dir / "session")
        self.counters = Counters(self.site.state_dir / "session")
        self.hub = RankGroup(ranks, settle_timeout=1.0)
        self.server = grpc.server(ThreadPoolExecutor(max_workers=threads))
        worker_pb2_grpc.add_RanksServicer_to_server(self.hub, self.server)
        worker_pb2_grpc.add_WorkerServicer_to_server(
            WorkerService(self.site, self.session, self.hub, self.counters), self.server
        )
        self.address = f"unix:{socket_path(self.site.state_dir)}"
        self.server.add_insecure_port(self.address)
        self.server.start()
        self.log: list[str] = []

    def rank(self, number: int = 0, behave: Behaviour = train, pid: int = 0) -> FakeRank:
        rank = FakeRank(self.address, number, pid or os.getpid(), behave)
        rank.start()
        return rank

    def train(self, task: TrainTask, bundle: bytes = START) -> tuple[bytes, bool]:
        return worker_client.run_round(self.file, self.site, task, bundle, self.log.append)

    def stop(self) -> None:
        self.server.stop(0).wait()
        self.session.close()
        self.counters.close()

    def stub(self) -> tuple[Any, Any]:
        channel = grpc.insecure_channel(self.address)
        return channel, worker_pb2_grpc.WorkerStub(channel)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path, 1)
    yield worker
    worker.stop()


def task(round_: int, *, steps: int = 1, version: int = 0) -> TrainTask:
    return TrainTask(
        run="run",
        round=round_,
        version=version,
        steps=steps,
        batch_size=1,
        lr=1.0,
        optimizer="sgd",
        codec="bf16",
        feedback=1.0,
        max_length=8,
        objective=objective_json(Classification(labels=("a", "b"))),
        seed=0,
        adapter_config="{}",
        layout=LAYOUT.to_json(),
    )


def test_a_round_streams_progress_and_its_reply(worker: Worker) -> None:
    rank = worker.rank()
    payload, replayed = worker.train(task(1))
    header = unpack(payload, Limits.for_numel(LAYOUT.numel)).header
    assert (header.kind, header.site, header.examples, replayed) == (Kind.UPDATE, "north", 7, False)
    assert any("train 1/1 loss 0.2500" in line for line in worker.log)
    assert worker.train(task(1)) == (payload, True)
    assert rank.jobs == 1
    report, _ = worker.train(task(2, steps=0))
    assert unpack(report, Limits(max_body=0)).header.kind is Kind.REPORT
    rank.die()


def test_a_rank_that_dies_is_waited_for_and_the_round_is_done_again(worker: Worker) -> None:
    died = worker.rank(behave=lambda rank, job: rank.die() or METRICS)
    found: list[bool] = []
    asked = threading.Thread(target=lambda: found.append(worker.train(task(1))[1]))
    asked.start()
    died.join(timeout=10)
    again = worker.rank()
    asked.join(timeout=30)
    assert found == [False]
    assert any("a rank died" in line for line in worker.log)
    again.die()


def test_ranks_that_always_die_fail_the_round(worker: Worker) -> None:
    """The elastic agent starts them again; twice is once too often for one round."""

    def die(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        rank.die()
        worker.rank(behave=die)
        return METRICS

    worker.rank(behave=die)
    with pytest.raises(TrainingError, match="the rank's process ended") as caught:
        worker.train(task(1))
    assert caught.value.code == "rank-died"


def test_a_round_without_memory_is_done_again_with_half_the_micro_batch(worker: Worker) -> None:
    """And what fits is remembered."""
    sizes: list[int] = []

    def behave(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        sizes.append(job["micro_batch"])
        if job["micro_batch"] > 4:
            raise TrainingError("out-of-memory", "CUDA out of memory")
        return train(rank, job)

    rank = worker.rank(behave=behave)
    assert worker.train(task(1))[1] is False
    assert sizes == [16, 8, 4]
    worker.train(replace(task(2), version=0))
    assert sizes == [16, 8, 4, 4]
    rank.die()


def test_an_error_of_a_rank_reaches_the_caller(worker: Worker) -> None:
    def fail(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        raise TrainingError("ConfigError", "rows.jsonl:3: bad")

    rank = worker.rank(behave=fail)
    with pytest.raises(TrainingError, match=r"rank 0: rows.jsonl:3: bad"):
        worker.train(task(1))
    rank.die()


def test_a_rank_that_hangs_after_anothers_error_is_killed(tmp_path: Path) -> None:
    """Rank 0 reports an error, rank 1 hangs as in a collective: its process is killed."""
    worker = Worker(tmp_path, 2)
    victims = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(2)]
    hang = threading.Event()

    def fail(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        raise TrainingError("broken", "x")

    def wait(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        hang.wait(timeout=60)
        return METRICS

    ranks = [worker.rank(0, fail, victims[0].pid), worker.rank(1, wait, victims[1].pid)]
    with pytest.raises(TrainingError, match="rank 0: x"):
        worker.train(task(1))
    assert [v.wait(timeout=20) for v in victims] == [-9, -9]
    hang.set()
    for rank in ranks:
        rank.die()
    worker.server.stop(0).wait()
    worker.session.close()
    worker.counters.close()


def test_another_round_is_refused_while_one_runs_and_the_same_one_attaches(worker: Worker) -> None:
    """The first caller goes away; the round goes on, and its request finds it again."""
    entered: queue.Queue[int] = queue.Queue()
    release = threading.Event()

    def slow(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        entered.put(1)
        release.wait(timeout=60)
        return train(rank, job)

    rank = worker.rank(behave=slow)
    channel, stub = worker.stub()
    first = stub.Train(worker_client._requests(task(1), START))
    entered.get(timeout=20)
    assert worker.stub()[1].Status(worker_pb2.StatusRequest()).round == 1
    with pytest.raises(TrainingError, match="round 1 of run run is still running") as caught:
        worker.train(task(2))
    assert caught.value.code == "busy"
    first.cancel()
    channel.close()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(worker.train, task(1))
        release.set()
        payload, _ = second.result(timeout=30)
    assert rank.jobs == 1
    assert unpack(payload, Limits.for_numel(LAYOUT.numel)).header.round == 1
    assert worker.train(task(1)) == (payload, True)
    rank.die()


def test_callers_that_went_away_hold_no_threads(tmp_path: Path) -> None:
    """More callers follow a round and are killed than the server has threads; the ranks can still report."""
    worker = Worker(tmp_path, 1, threads=4)
    release = threading.Event()

    def slow(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        rank.progress(phase="train", step=1, steps=2, loss=0.5)
        release.wait(timeout=60)
        return train(rank, job)

    rank = worker.rank(behave=slow)
    for _ in range(6):
        channel, stub = worker.stub()
        call = stub.Train(worker_client._requests(task(1), START), timeout=30)
        assert next(call).progress.steps == 2, "this caller follows the round"
        call.cancel()
        channel.close()
    release.set()
    payload, _ = worker.train(task(1))
    assert unpack(payload, Limits.for_numel(LAYOUT.numel)).header.round == 1
    assert rank.jobs == 1
    rank.die()
    worker.server.stop(0).wait()
    worker.session.close()
    worker.counters.close()


def test_a_coordinator_that_was_restarted_finds_the_running_round(worker: Worker) -> None:
    """The SuperNode has a new id by now, so the task lists the merged digests of all sites."""
    entered, release = threading.Event(), threading.Event()

    def slow(rank: FakeRank, job: dict[str, Any]) -> dict[str, float]:
        entered.set()
        release.wait(timeout=60)
        return train(rank, job)

    rank = worker.rank(behave=slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(worker.train, task(1))
        assert entered.wait(timeout=20)
        channel, stub = worker.stub()
        call = stub.Train(worker_client._requests(replace(task(1), merged=("ab" * 32,)), START), timeout=30)
        release.set()
        events = list(call)
        channel.close()
    assert rank.jobs == 1
    assert b"".join(e.chunk for e in events) == first.result()[0]
    rank.die()


def test_a_worker_that_is_still_starting_is_waited_for(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has started it by hand: the relay's own one ends at once, because the lease is held."""
    site = worker.site
    looks: list[float] = []

    def refused(*_: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])
        process.wait()
        return process

    def ready(channel: grpc.Channel, timeout: float) -> bool:
        looks.append(timeout)
        return len(looks) > 3

    monkeypatch.setattr(worker_client, "start_worker", refused)
    monkeypatch.setattr(worker_client, "_ready", ready)
    with pytest.raises(ProcessError, match="did not start"):
        worker_client._connect(worker.file, site)
    assert len(looks) == 2, "nobody holds the lease, so nobody will come"
    looks.clear()
    with lease(site.state_dir):
        worker_client._connect(worker.file, site).close()
    assert len(looks) == 4


def test_a_downlink_that_does_not_fit(worker: Worker) -> None:
    rank = worker.rank()
    with pytest.raises(TrainingError, match="version: 0 is held: the task needs 3") as caught:
        worker.train(task(4, version=3))
    assert caught.value.code == "base-digest"
    with pytest.raises(TrainingError, match="SHA-256") as caught:
        worker.train(task(1), START[:-1] + bytes([START[-1] ^ 1]))
    assert caught.value.code == "ChecksumError"
    assert rank.jobs == 0
    rank.die()


def test_requests_that_lie(worker: Worker) -> None:
    channel, stub = worker.stub()
    head = worker_pb2.TaskHeader(task_json=task(1).to_json(), payload_size=3)
    item = worker_pb2.TrainRequest
    for requests, words in (
        ([], "first item must be the task"),
        ([item(chunk=b"x")], "first item must be the task"),
        ([item(task=head), item(chunk=b"xxxx")], "more than the 3 bytes"),
        ([item(task=head), item(chunk=b"x")], "1 bytes: 3 were promised"),
        ([item(task=worker_pb2.TaskHeader(task_json=task(1).to_json(), payload_size=1 << 60))], "at most"),
        ([item(task=worker_pb2.TaskHeader(task_json="{", payload_size=0))], "must be a task of protocol 6"),
    ):
        (event,) = stub.Train(iter(requests))
        assert words in event.failure.message
    channel.close()
