"""SmolLM2-135M with LoRA of rank 16 at one site: its files, and a worker that is asked as the ClientApp does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedcompress.adapters import load_template
from fedcompress.config.objective import objective_json
from fedcompress.config.train_task import TrainTask
from fedcompress.demo import data as demo_data
from fedcompress.pipeline.states import encode_snapshot

ADAPTER = "lora(r=16,targets=all-linear)"
BATCH = 4
LENGTH = 128
ROWS = 40


@dataclass
class Place:
    """Files of a site, and the template of its run."""

    folder: Path
    engine: str = "zero_stage = 2"
    ranks: int = 1
    dtype: str = "bfloat16"
    adapter: str = ADAPTER
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        site = demo_data.write_sites(self.folder / "data", 1, demo_data.format_completion, ROWS)[0]
        heldout = site.heldout.read_text(encoding="utf-8").splitlines()[:8]
        site.heldout.write_text("\n".join(heldout) + "\n", encoding="utf-8")
        model = demo_data.smollm2_folder()
        self.template = self.folder / "template"
        if not self.template.exists():
            options = ["--adapter", self.adapter, "--out", str(self.template)]
            subprocess.run([sys.executable, "-m", "fedcompress", "template", str(model), *options], check=True)
        self.file = self.folder / "site.toml"
        self.file.write_text(
            f'[site]\nname = "bench"\nstate_dir = "state"\n[model]\npath = {json.dumps(str(model))}\n'
            f'dtype = "{self.dtype}"\n[data]\ntrain = {json.dumps(str(site.train))}\n'
            f"heldout = {json.dumps(str(site.heldout))}\n[engine]\nranks = {self.ranks}\nmicro_batch = {BATCH}\n"
            f"threads = {os.cpu_count() if self.ranks == 1 else 1}\n{self.engine}\n"
        )

    def task(self, round_: int, steps: int, codec: str = "lora-transform") -> TrainTask:
        """A round on version 0."""
        made = load_template(self.template)
        return TrainTask(
            run="bench",
            round=round_,
            version=0,
            steps=steps,
            batch_size=BATCH,
            lr=1e-3,
            optimizer="adamw",
            codec=codec,
            feedback=1.0,
            max_length=LENGTH,
            objective=objective_json(made.objective),
            seed=0,
            adapter_config=json.dumps(made.adapter.config, sort_keys=True),
            layout=made.adapter.layout.to_json(),
            base_fingerprint=made.base_fingerprint,
            tokenizer=made.tokenizer,
            constants=made.constants,
        )

    def train(self, task: TrainTask, watch: Callable[[Any], None] = lambda progress: None) -> tuple[bytes, float]:
        """The reply to a task, and how long it took, s; the worker is started if there is none.

        ``watch`` is given the worker's notes.
        """
        from clients import worker_client
        from clients.site import SiteConfig

        adapter = load_template(self.template).adapter
        start = encode_snapshot(adapter.tensors, adapter.layout, run="bench", version=0, init_seed=0)
        began = time.perf_counter()
        reply, _ = worker_client.run_round(self.file, SiteConfig.load(self.file), task, start, self.log.append, watch)
        return reply, time.perf_counter() - began

    def stop(self) -> None:
        """End the worker."""
        import grpc

        from clients import worker_client
        from clients.runtime.paths import socket_path
        from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc

        with grpc.insecure_channel(f"unix:{socket_path(self.folder / 'state')}") as channel:
            worker_pb2_grpc.WorkerStub(channel).Stop(worker_pb2.StopRequest())
        while worker_client.STARTED:
            worker_client.STARTED.pop().wait(timeout=30)


def metrics_of(reply: bytes) -> dict[str, float]:
    """Metrics in a reply."""
    from fedcompress.wire import Limits, unpack

    return dict(unpack(reply, Limits(max_body=1 << 32)).header.metrics)


@contextmanager
def peak_of(find: Any, interval: float = 0.2) -> Iterator[dict[str, int]]:
    """Largest sum of the proportional set sizes (PSS) of the processes that ``find`` gives, bytes, as ``peak``."""
    found, done = {"peak": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            total = 0
            for process in find():
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            found["peak"] = max(found["peak"], total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
