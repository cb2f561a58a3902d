"""Runs one job of a rank: evaluate the published state, train, hand back the delta."""

from __future__ import annotations

import gc
import hashlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from clients.site import SiteConfig
from clients.training.data.examples import Place, load_examples, picks_for_steps, row_count
from clients.training.delta_file import write_delta
from clients.training.engines import WarmEngine, engine_for, micro_batches
from clients.training.evaluation import evaluate
from clients.training.job import Job
from clients.training.lora_rank_limit import LoraRankLimit
from clients.training.model import load_model, load_round_start
from clients.training.multinode import broadcast_job, check_equal, digest_of_rows, local_rank
from clients.training.tasks import Example, Task, task_for
from fedcompress.adapters import base_fingerprint, load_adapter
from fedcompress.adapters.attach import AdaptedModel
from fedcompress.adapters.base_model import load_tokenizer, tokenizer_digest
from fedcompress.adapters.full import Layers, load_trainable_set, trains_base_weights
from fedcompress.adapters.positions import check_length, count_positions
from fedcompress.config.drift import FedProx, parse_drift_correction
from fedcompress.config.schedules import parse_schedule
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError, TrainingError
from fedcompress.numerics.philox import hash_seed
from fedcompress.types import Array, Layout

OnProgress = Callable[..., None]
# Settings of [model] and [engine] that may differ between the nodes of one site.
OF_A_NODE = ("path", "threads", "token", "rendezvous", "offload_path", "start_timeout")


@dataclass
class Trainer:
    """Keeps warm what a rank needs in every job: base model, engine, tokenized rows.

    Args:
        site: the site's settings.
        rank: number of this rank.
        world: number of ranks, on all nodes.
        loads: how often a model was loaded.
        key: settings that the warm engine was built with.
        engine: the warm engine, if there is one.
        objective: what is learnt, as batches and losses.
        limit: trains fewer LoRA components than the run has, where the site's settings (``rank``) say so.
        model: the base with its adapter, or with the weights that are trained.
        examples: tokenized rows of ``train`` and ``heldout``.
    """

    site: SiteConfig
    rank: int
    world: int
    loads: int = 0
    key: tuple[Any, ...] = ()
    engine: WarmEngine | None = None
    objective: Task | None = None
    limit: LoraRankLimit | None = None
    model: AdaptedModel | None = None
    examples: dict[str, Sequence[Example]] = field(default_factory=dict)

    def run(self, job: Job, progress: OnProgress) -> dict[str, float]:
        """Run a job and return its metrics; rank 0 writes what was trained to ``job.out``.

        Raises:
            MismatchError: the model built here has another layout, or other constants, than the coordinator's.
            ConfigError: a bad row, or settings that do not fit together.
            TrainingError: a loss that is not a number, or nothing was trained.
        """
        is_done = False
        try:
            metrics = self._run(job, progress)
            is_done = True
            return metrics
        finally:
            if job.drop or not is_done:  # then the engine may have stopped in the middle of a step
                self.drop()

    def drop(self) -> None:
        """Forget model and rows, so that their memory is free."""
        self.engine = None
        self.objective = None
        self.model = None
        self.key = ()
        self.examples.clear()
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()

    def _run(self, job: Job, progress: OnProgress) -> dict[str, float]:
        if self.site.engine.nodes > 1:
            job = broadcast_job(job, self.site.state_dir / "work", rank=self.rank, local_rank=local_rank())
        adapter = load_adapter(job.published)
        task = job.task
        started = time.monotonic()
        engine = self._prepare(job, adapter.config, progress)
        loaded = time.monotonic()
        assert self.model is not None
        assert self.objective is not None
        start = load_round_start(self.model, job, adapter)
        engine.begin(start, task)
        if self.limit is not None:
            self.limit.begin(task.seed, task.round)
        progress(phase="evaluate")
        metrics = evaluate(engine, self.objective, self.examples["heldout"], rank=self.rank, world=self.world)
        evaluated = time.monotonic()
        metrics |= {
            "train_examples": float(row_count(self.examples["train"])),
            "model_loads": float(self.loads),
            "seconds_load": loaded - started,
            "seconds_evaluate": evaluated - loaded,
        }
        if task.steps:
            metrics |= self._train(engine, task, start, progress)
            metrics["seconds_train"] = time.monotonic() - evaluated
            progress(phase="extract")
            layout = Layout.from_json(task.layout)  # the folder's own order may be another
            is_changed = write_delta(engine, start, layout, job.out if self.rank == 0 else None)
            if is_changed is None:  # the rank that writes has failed, says why, and loads its model again
                self.drop()
            elif not is_changed:
                raise TrainingError("no-update", f"round {task.round}: nothing changed in {task.steps} steps")
        return metrics

    def _prepare(self, job: Job, config: Any, progress: OnProgress) -> WarmEngine:
        """Load model and rows, unless the last job used the same."""
        task = job.task
        key = _model_key(job, config)
        self._check_correction(task)
        if self.engine is not None and key == self.key:
            return self.engine
        self.drop()  # before another is built
        progress(phase="load", text=str(self.site.model.path))
        tokenizer = load_tokenizer(self.site.model.path)
        check_length(task.max_length, count_positions(self.site.model.path, config), "task.max_length")
        self.objective = task_for(task.learns, self.site.data, tokenizer, task.max_length)
        place = Place(
            folder=self.site.state_dir / "tokens",
            recipe=lambda: f"{task.objective}/{task.max_length}/{tokenizer_digest(self.site.model.path)}",
            rank=local_rank(),
            world=self.world,
        )
        for part in ("train", "heldout"):
            self.examples[part] = load_examples(self.site.data, part, self.objective, place, progress)
        if self.site.engine.nodes > 1:
            self._check_nodes()
        self.model = load_model(self.site.model, task, config, job.constants)
        self.limit = LoraRankLimit(self.model.parameters, self.site.rank, self.site.name) if self.site.rank else None
        micro, accumulation = micro_batches(task.batch_size, self.world, job.micro_batch)
        self.engine = engine_for(self.model, self.site.engine, task, micro=micro, accumulation=accumulation)
        self.key = key
        self.loads += 1
        return self.engine

    def _check_nodes(self) -> None:
        """Compare the nodes: ranks pick rows by number, and add gradients, so that rows and base must be equal."""
        options = {k: v for k, v in (asdict(self.site.model) | asdict(self.site.engine)).items() if k not in OF_A_NODE}
        digests = {
            "model.path": base_fingerprint(self.site.model.path, self.site.state_dir / "fingerprint.json"),
            "[model] or [engine]": hashlib.sha256(f"{sorted(options.items())} {self.site.rank}".encode()).digest(),
            **{f"data.{part}": digest_of_rows(rows) for part, rows in self.examples.items()},
        }
        check_equal(digests, self.site.engine.ranks)

    def _check_correction(self, task: TrainTask) -> None:
        """Refuse a correction of drift, which reads whole parameters, where an engine partitions them."""
        engine = self.site.engine
        is_partitioned = engine.zero_stage == 3 if engine.kind == "deepspeed" else engine.sharding != "none"
        if is_partitioned and parse_drift_correction(task.correction).name != "none":
            rule = "must be none at a site with zero_stage = 3 or sharding, which partition what is trained"
            raise ConfigError("task.correction", task.correction, rule)

    def _train(
        self, engine: WarmEngine, task: TrainTask, start: Mapping[str, Array], progress: OnProgress
    ) -> dict[str, float]:
        """Make the steps of a round; return the mean loss of the last ones, and how many were made if not all."""
        import torch

        rows = self.examples["train"]
        schedule = parse_schedule(task.schedule)
        torch.manual_seed(derive_training_seed(task, self.site.name, f"dropout/{self.rank}"))
        engine.mode(train=True)
        penalty = self._drift_penalty(engine, task, start)
        losses: list[float] = []
        order = picks_for_steps(
            len(rows), task.batch_size, task.steps, derive_training_seed(task, self.site.name, "order")
        )
        began = time.monotonic()
        total_steps = task.steps * task.rounds
        for step, picks in enumerate(order, start=1):
            engine.set_lr(task.lr * schedule.factor((task.round - 1) * task.steps + step - 1, total_steps))
            losses.append(self._step(engine, [rows[i] for i in picks], penalty, step))
            if step % max(1, task.steps // 20) == 0:
                progress(phase="train", step=step, steps=task.steps, loss=self._sum_over_ranks(engine, losses[-1:])[0])
            if self._is_late(engine, began, task.deadline):
                whole = self._sum_over_ranks(engine, losses[-1:])[0]
                progress(phase="train", step=step, steps=task.steps, loss=whole, text="stopped by the deadline")
                break
        tail = self._sum_over_ranks(engine, losses[-max(1, len(losses) // 4) :])
        metrics = {"train_loss": sum(tail) / len(tail)}
        if len(losses) < task.steps:  # only then: the metric's name has no number on the wire, and costs bytes
            metrics["steps_done"] = float(len(losses))
        return metrics

    def _step(self, engine: WarmEngine, batch: Sequence[Example], penalty: Callable[[], Any], step: int) -> float:
        """Make one optimizer step; return this rank's share of the mean loss over what the whole batch predicts.

        Raises:
            TrainingError: it is not finite.
        """
        assert self.objective is not None
        mine = batch[self.rank :: self.world]
        total = 0.0
        predictions = sum(e.predictions for e in batch)
        for start in range(0, len(mine), engine.micro):
            part = mine[start : start + engine.micro]
            inputs = {name: value.to(engine.device) for name, value in self.objective.batch(part).items()}
            loss = self.objective.measure(engine.module, inputs).loss / predictions
            value = float(loss)
            if not math.isfinite(value):
                places = ", ".join(e.where for e in part)
                raise TrainingError("nan-loss", f"step {step}: loss {value}: of rows {places}")
            total += value
            is_last = start + engine.micro >= len(mine)
            engine.step(loss + (penalty() if is_last else 0.0), last=is_last)
        return total

    def _sum_over_ranks(self, engine: WarmEngine, shares: Sequence[float]) -> list[float]:
        """Return the losses of steps, of which each rank has its share; all ranks call it."""
        if self.world == 1:
            return list(shares)
        import torch

        losses = torch.tensor(shares, dtype=torch.float64, device=engine.device)
        torch.distributed.all_reduce(losses)
        whole: list[float] = losses.tolist()
        return whole

    def _drift_penalty(self, engine: WarmEngine, task: TrainTask, start: Mapping[str, Array]) -> Callable[[], Any]:
        """Return what the correction of drift adds to the loss of a step."""
        import torch

        match parse_drift_correction(task.correction):
            case FedProx(mu=mu):
                anchors = {n: torch.from_numpy(start[n]).to(engine.device) for n in engine.parameters}
                scale = mu / 2 / self.world  # the ranks' gradients are added
                return lambda: scale * sum(((p - anchors[n]) ** 2).sum() for n, p in engine.parameters.items())
            case _:
                return lambda: 0.0

    def _is_late(self, engine: WarmEngine, began: float, deadline: float) -> bool:
        """Return whether any rank's time is over; all ranks stop at the same step."""
        if not deadline:
            return False
        import torch

        late = torch.tensor([float(time.monotonic() - began > deadline)], device=engine.device)
        torch.distributed.all_reduce(late)
        return bool(late.item())


def _model_key(job: Job, config: Any) -> tuple[Any, ...]:
    """Return all settings that a warm engine depends on: with others, another must be built."""
    task = job.task
    layers_round = 0  # other layers are trained in each round
    if trains_base_weights(config) and isinstance(load_trainable_set(config), Layers):
        layers_round = task.round
    return (
        task.adapter_config,
        task.objective,
        task.freeze,
        task.constants,
        task.max_length,
        task.seed,
        task.tokenizer,
        task.quantization,
        task.run if task.optimizer_state == "keep" else "",  # state is not handed from one run to another
        task.batch_size,
        task.optimizer,
        task.clip,
        job.micro_batch,
        layers_round,
    )


def derive_training_seed(task: TrainTask, site: str, purpose: str) -> int:
    """Derive 63 bits for one use of randomness.

    Args:
        task: its seed and the number of its round.
        site: name of the site.
        purpose: what the randomness is for.

    Returns:
        A number from 0 to 2^63 - 1.
    """
    return hash_seed(task.seed, site, task.round, purpose)
