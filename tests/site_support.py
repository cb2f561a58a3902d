"""Real sites and deployments on small data, for the integration, fault and GPU tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from clients import worker_client
from clients.runtime.paths import socket_path
from clients.site import SiteConfig
from clients.training.job import DELTA
from fedcompress.adapters import Adapter, load_adapter
from fedcompress.config.objective import Classification, objective_json
from fedcompress.config.train_task import TrainTask
from fedcompress.demo import data as demo_data
from fedcompress.demo.federation import Federation
from fedcompress.pipeline.states import encode_snapshot
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc
from fedcompress.runtime.process_group import wait_until
from fedcompress.storage.tensor_file import open_tensor_file
from fedcompress.types import Layout, Tensors, add
from fedcompress.wire import Limits, unpack

LABELS = demo_data.LABELS[:3]


def make_template(folder: Path, rank: int = 8) -> None:
    """Write the initial adapter for ``LABELS`` in a process of its own (it imports torch)."""
    adapter = f"lora(r={rank},targets=query+value)"
    model, options = str(demo_data.model_folder()), ["--adapter", adapter, "--out", str(folder)]
    task = ["--task", "classification", "--labels", ",".join(LABELS)]
    subprocess.run(
        [sys.executable, "-m", "fedcompress", "template", model, *options, *task], check=True, capture_output=True
    )


def read_trained(published: Path, results: Path, layout: Layout) -> Tensors:
    """What a rank has trained: the published adapter, and the delta that it left."""
    start = load_adapter(published).tensors
    return add({t.name: start[t.name] for t in layout.tensors}, open_tensor_file(results / DELTA, layout))


def write_site(
    folder: Path, name: str, *, rows: int, ranks: int = 1, stage: int = 2, skip: int = 0, timeout: int = 600
) -> Path:
    """site.toml and data of one site: ``rows`` training rows and a third as many held out."""
    source = demo_data.source_folder() / "MedMCQA-Test"
    lines = []
    for label in LABELS:
        texts = (source / f"{label}.jsonl").read_text().splitlines()[skip : skip + rows]
        lines.append([json.dumps({"text": json.loads(t)["question"], "label": label}) for t in texts])
    mixed = [line for group in zip(*lines, strict=False) for line in group]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-train.jsonl").write_text("\n".join(mixed[:rows]) + "\n")
    (folder / f"{name}-heldout.jsonl").write_text("\n".join(mixed[rows : rows + rows // 3]) + "\n")
    path = folder / f"{name}.toml"
    path.write_text(
        f'[site]\nname = "{name}"\nstate_dir = "{name}"\n\n'
        f"[model]\npath = {json.dumps(str(demo_data.model_folder()))}\n\n"
        f'[data]\ntrain = "{name}-train.jsonl"\nheldout = "{name}-heldout.jsonl"\n\n'
        f"[engine]\nranks = {ranks}\nzero_stage = {stage}\ncollective_timeout = {timeout}\n"
    )
    return path


def metrics_of(payload: bytes) -> dict[str, float]:
    """Metrics in the header of an envelope."""
    return dict(unpack(payload, Limits(max_body=1 << 30)).header.metrics)


@dataclass
class WorkerSite:
    """A site whose worker is spoken to as the ClientApp does."""

    file: Path
    template: Path
    log: list[str] = field(default_factory=list)

    @property
    def config(self) -> SiteConfig:
        """The parsed site.toml."""
        return SiteConfig.load(self.file)

    @property
    def adapter(self) -> Adapter:
        """The initial adapter."""
        return load_adapter(self.template)

    def trained(self) -> Tensors:
        """What the ranks have left in the last round."""
        work = self.config.state_dir / "work"
        return read_trained(work / "published", work / "trained", self.adapter.layout)

    def task(self, round_: int, *, steps: int = 2, **changes: Any) -> TrainTask:
        """A task on version 0."""
        fields: dict[str, Any] = {
            "run": "test",
            "round": round_,
            "version": 0,
            "steps": steps,
            "batch_size": 8,
            "lr": 2e-3,
            "optimizer": "adamw",
            "codec": "lora-ternary",
            "feedback": 1.0,
            "max_length": 24,
            "objective": objective_json(Classification(labels=LABELS)),
            "seed": 0,
            "adapter_config": json.dumps(self.adapter.config, sort_keys=True),
            "layout": self.adapter.layout.to_json(),
        }
        return TrainTask(**{**fields, **changes})

    @property
    def start(self) -> bytes:
        """The downlink that brings version 0."""
        return encode_snapshot(self.adapter.tensors, self.adapter.layout, run="test", version=0, init_seed=0)

    def train(self, task: TrainTask, bundle: bytes | None = None) -> tuple[bytes, bool]:
        """One round through the relay, which starts the worker if there is none."""
        return worker_client.run_round(
            self.file, self.config, task, self.start if bundle is None else bundle, self.log.append
        )

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the worker by hand, owned by this test process."""
        process = worker_client.start_worker(self.file, self.config, os.getpid())
        address = socket_path(self.config.state_dir)

        def alive() -> None:
            assert process.poll() is None, (self.config.state_dir / "logs" / "worker.log").read_text()

        wait_until(address.exists, timeout=60, what="worker", alive=alive)
        return process

    @property
    def pid(self) -> int:
        """Process id of the worker that holds the lease."""
        return int((self.config.state_dir / "worker.lock").read_text())

    def status(self) -> worker_pb2.StatusReply:
        """The worker's status."""
        import grpc

        with grpc.insecure_channel(f"unix:{socket_path(self.config.state_dir)}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
            return worker_pb2_grpc.WorkerStub(channel).Status(worker_pb2.StatusRequest())

    def descendants(self) -> list[psutil.Process]:
        """The worker's ranks."""
        return psutil.Process(self.pid).children(recursive=True)

    def stop(self) -> None:
        """End the worker, if one runs, and check that its ranks go with it."""
        try:
            self._stop()
        finally:
            while worker_client.STARTED:
                worker_client.STARTED.pop().wait(timeout=20)

    def _stop(self) -> None:
        lock = self.config.state_dir / "worker.lock"
        if not lock.exists():
            return
        try:
            worker = psutil.Process(self.pid)
            if not any("clients.worker.main" in part for part in worker.cmdline()):
                return
        except (psutil.NoSuchProcess, ValueError):
            return
        ranks = worker.children(recursive=True)
        worker.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs([worker, *ranks], timeout=20)
        for process in left:
            process.kill()
        assert not left, f"processes outlived their worker: {left}"


def run_federation(
    folder: Path,
    template: Path,
    *,
    sites: int = 2,
    rounds: int = 1,
    rows: int = 48,
    via: Callable[[str], str] = lambda address: address,
    certs: Path | None = None,
    prepare: Callable[[dict[str, Path]], None] = lambda files: None,
    on_event: Callable[[Federation, dict[str, Any]], None] = lambda federation, event: None,
    timeout: float = 300,
    **config: Any,
) -> list[dict[str, Any]]:
    """A real deployment on small data; returns the coordinator's events."""
    files = {f"site-{i}": write_site(folder / "sites", f"site-{i}", rows=rows, skip=100 * i) for i in range(sites)}
    prepare(files)
    settings: dict[str, Any] = {
        "run": "test",
        "state-dir": str(folder / "coordinator"),
        "initial-adapter": str(template),
        "rounds": rounds,
        "min-sites": sites,
        "quorum": sites,
        "min-cohort": 1,  # few sites, and none of them real
        "steps": 2,
        "batch-size": 8,
        "max-length": 24,
        "round-timeout": 200.0,
        "codec": "lora-ternary",
        "downlink-codec": "lora-ternary",
        "require-signatures": False,
    }
    events = []
    with Federation(folder, files, via=via, certs=certs) as federation:
        federation.start()
        federation.submit({**settings, **config})
        for event in federation.events(folder / "coordinator" / "events.jsonl", timeout=timeout):
            events.append(event)
            on_event(federation, event)
    assert events[-1]["event"] == "finished", events[-1]
    return events
