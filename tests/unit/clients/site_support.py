"""A site whose ranks are a stand-in: seeded random deltas. The worker's rounds, and everything durable, are real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.signing import SiteIdentity
from clients.site import Data, SiteConfig
from clients.state.site_state import SiteState
from clients.training.job import DELTA, Job
from clients.worker.rank_group import RankReport
from clients.worker.round_runner import RoundRunner
from fedcompress.adapters import load_adapter
from fedcompress.adapters.base_model import BaseModel
from fedcompress.config.train_task import TrainTask
from fedcompress.storage.tensor_file import serialize_chunks
from fedcompress.types import Layout, Tensors, add, subtract, zeros
from tests.support import normal


def write_delta_file(job: Job, delta: Tensors) -> None:
    """Write trained minus published where rank 0 does."""
    ordered = {t.name: delta[t.name] for t in Layout.from_json(job.task.layout).tensors}
    job.out.mkdir(parents=True)
    (job.out / DELTA).write_bytes(b"".join(serialize_chunks([ordered])))


class FakeRanks:
    """In the place of a hub and its ranks."""

    def __init__(self, site: FakeSite) -> None:
        self._site = site

    def rest(self) -> None:
        """End, until there is a job."""
        self._site.rests += 1

    def run(self, job_json: str, **_: Any) -> Iterator[RankReport]:
        """What rank 0 reports; leaves what was trained where a rank does."""
        job, site = Job.from_json(job_json), self._site
        quality = {"eval_correct": 1.0, "eval_examples": 2.0, "eval_loss_sum": 3.0}
        if job.task.steps:
            site.trained += 1
            start = load_adapter(job.published)
            delta = normal(start.layout, sum(site.name.encode()) + 1000 * job.task.round, 0.1 * site.scale)
            site.deltas = add(site.deltas or zeros(start.layout), delta)
            write_delta_file(job, subtract(add(start.tensors, delta), start.tensors))
        yield RankReport(rank=0, result_json=json.dumps({**quality, "train_examples": 10 + len(site.name)}))


class FakeSite:
    """Answers tasks as a worker does, without a model."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.trained = 0
        self.rests = 0
        self.scale = 1.0  # of what it trains, where 1 is honest
        self.deltas: Tensors = {}
        self.refused: list[str] = []  # what the coordinator said of replies
        base = folder / f"{name}.base"
        base.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "model.safetensors", "rows.jsonl"):
            (base / file).write_bytes(b"{}")
        model, data = BaseModel(path=base), Data(train=str(base / "rows.jsonl"))
        self._config = SiteConfig(name=name, state_dir=self.folder, model=model, data=data)
        self.session = SiteState(self.folder)
        self._start()

    def _start(self) -> None:
        ranks: Any = FakeRanks(self)
        self._runner = RoundRunner(self._config, self.session, ranks)

    @property
    def name(self) -> str:
        """What it calls itself."""
        return self._config.name

    @name.setter
    def name(self, name: str) -> None:
        self._config = replace(self._config, name=name)
        self._start()

    @property
    def identity(self) -> SiteIdentity:
        """Its key and the coordinator's."""
        return self._runner._identity

    @identity.setter
    def identity(self, identity: SiteIdentity) -> None:
        self._runner._identity = identity

    def reopen(self) -> None:
        """Restart: nothing but the disk survives."""
        identity = self.identity
        self.session.close()
        self.session = SiteState(self.folder)
        self._start()
        self.identity = identity

    def answer(self, task: TrainTask, bundle: bytes, signature: str = "") -> bytes:
        """The reply's payload."""
        reply = self._runner.run(task, bundle, lambda **_: None, signature)
        self.refused += task.refused
        return reply.payload
