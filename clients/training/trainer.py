"""One job of a rank: evaluate the published state, train, hand back the tensors."""

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
from clients.training.job import Job
from clients.training.model import load_model, load_round_start
from clients.training.multinode import broadcast_job, check_equal, digest_of_rows, local_rank
from clients.training.rank_limit import RankLimit
from clients.training.tasks import Example, Task, task_for
from fedcompress.adapters import base_fingerprint, load_adapter
from fedcompress.adapters.attach import AdaptedModel
from fedcompress.adapters.base_model import load_tokenizer, tokenizer_digest
from fedcompress.adapters.full import Layers, load_trainable_set, trains_base_weights
from fedcompress.config.drift import FedProx, parse_drift_correction
from fedcompress.config.schedules import parse_schedule
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError, TrainingError
from fedcompress.types import Array, Layout

OnProgress = Callable[..., None]
OF_A_NODE = ("path", "threads", "token", "rendezvous", "offload_path", "start_timeout")  # may differ between nodes


@dataclass
class Trainer:
    """What a rank keeps warm between jobs: base model, engine, tokenized rows."""

    site: SiteConfig
    rank: int
    world: int
    loads: int = 0
    key: tuple[Any, ...] = ()
    warm: WarmEngine | None = None
    task: Task | None = None
    limit: RankLimit | None = None
    attached: AdaptedModel | None = None
    examples: dict[str, Sequence[Example]] = field(default_factory=dict)

    def run(self, job: Job, progress: OnProgress) -> dict[str, float]:
        """Metrics of the job; rank 0 writes the trained adapter to ``job.out``.

        Raises:
            MismatchError: the model built here has another layout, or other constants, than the coordinator's.
            ConfigError: a bad row, or settings that do not fit together.
            TrainingError: a loss that is not a number, or nothing was trained.
        """
        done = False
        try:
            metrics = self._run(job, progress)
            done = True
            return metrics
        finally:
            if job.drop or not done:  # then the engine may have stopped in the middle of a step
                self.drop()

    def drop(self) -> None:
        """Forget model and rows, so that their memory is free."""
        self.warm, self.task, self.attached, self.key = None, None, None, ()
        self.examples.clear()
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()

    def _run(self, job: Job, progress: OnProgress) -> dict[str, float]:
        if self.site.engine.nodes > 1:
            job = broadcast_job(job, self.site.state_dir / "work", rank=self.rank, local_rank=local_rank())
        adapter, task = load_adapter(job.published), job.task
        started = time.monotonic()
        warm = self._prepare(job, adapter.config, progress)
        loaded = time.monotonic()
        assert self.attached is not None
        start = load_round_start(self.attached, job, adapter)
        warm.begin(start, task)
        if self.limit is not None:
            self.limit.begin(task.seed, task.round)
        progress(phase="evaluate")
        metrics = self._evaluate(warm)
        evaluated = time.monotonic()
        metrics |= {
            "train_examples": float(row_count(self.examples["train"])),
            "model_loads": float(self.loads),
            "seconds_load": loaded - started,
            "seconds_evaluate": evaluated - loaded,
        }
        if task.steps:
            metrics |= self._train(warm, task, start, progress)
            metrics["seconds_train"] = time.monotonic() - evaluated
            progress(phase="extract")
            layout = Layout.from_json(task.layout)  # the folder's own order may be another
            if not write_delta(warm, start, layout, job.out if self.rank == 0 else None):
                raise TrainingError("no-update", f"round {task.round}: nothing changed in {task.steps} steps")
        return metrics

    def _prepare(self, job: Job, config: Any, progress: OnProgress) -> WarmEngine:
        """Load model and rows, unless the last job used the same."""
        task = job.task
        learnt = (task.adapter_config, task.objective, task.freeze, task.constants, task.max_length, task.seed)
        base = (task.tokenizer, task.quantization)
        kept = task.run if task.optimizer_state == "keep" else ""  # state is not handed from one run to another
        chosen = task.round if trains_base_weights(config) and isinstance(load_trainable_set(config), Layers) else 0
        key = (*learnt, *base, kept, task.batch_size, task.optimizer, task.clip, job.micro_batch, chosen)
        self._check_correction(task)
        if self.warm is not None and key == self.key:
            return self.warm
        self.drop()  # before another is built
        progress(phase="load", text=str(self.site.model.path))
        tokenizer = load_tokenizer(self.site.model.path)
        self.task = task_for(task.learns, self.site.data, tokenizer, task.max_length)
        place = Place(
            folder=self.site.state_dir / "tokens",
            recipe=lambda: f"{task.objective}/{task.max_length}/{tokenizer_digest(self.site.model.path)}",
            rank=local_rank(),
            world=self.world,
        )
        for part in ("train", "heldout"):
            self.examples[part] = load_examples(self.site.data, part, self.task, place, progress)
        if self.site.engine.nodes > 1:
            self._check_nodes()
        self.attached = attached = load_model(self.site.model, task, config, job.constants)
        self.limit = RankLimit(attached.parameters, self.site.rank, self.site.name) if self.site.rank else None
        micro, accumulation = micro_batches(task.batch_size, self.world, job.micro_batch)
        self.warm = engine_for(attached, self.site.engine, task, micro=micro, accumulation=accumulation)
        self.key = key
        self.loads += 1
        return self.warm

    def _check_nodes(self) -> None:
        """Ranks pick rows by number, and add gradients: both need the same rows and the same base everywhere."""
        options = {k: v for k, v in (asdict(self.site.model) | asdict(self.site.engine)).items() if k not in OF_A_NODE}
        facts = {
            "model.path": base_fingerprint(self.site.model.path, self.site.state_dir / "fingerprint.json"),
            "[model] or [engine]": hashlib.sha256(f"{sorted(options.items())} {self.site.rank}".encode()).digest(),
            **{f"data.{part}": digest_of_rows(rows) for part, rows in self.examples.items()},
        }
        check_equal(facts, self.site.engine.ranks)

    def _check_correction(self, task: TrainTask) -> None:
        """A correction reads whole parameters, which some engines do not have outside of the model."""
        engine = self.site.engine
        partitioned = engine.zero_stage == 3 if engine.kind == "deepspeed" else engine.sharding != "none"
        if partitioned and parse_drift_correction(task.correction).name != "none":
            rule = "must be none at a site with zero_stage = 3 or sharding, which partition what is trained"
            raise ConfigError("task.correction", task.correction, rule)

    def _evaluate(self, warm: WarmEngine) -> dict[str, float]:
        """Sums over the predictions of the held-out rows, shared among the ranks."""
        import torch

        rows, task = self.examples["heldout"], self.task
        assert task is not None
        size = 2 * warm.micro  # without gradients there is room for more
        mine = sorted(range(self.rank, len(rows), self.world), key=lambda i: len(rows[i].tokens))
        batches = [mine[at : at + size] for at in range(0, len(mine), size)]
        real, most = len(batches), math.ceil(math.ceil(len(rows) / self.world) / size)
        batches += [mine[:1] or [0]] * (most - real)  # every rank must take part in every gather
        sums = torch.zeros(5, dtype=torch.float64)
        warm.mode(train=False)
        with torch.no_grad():
            for number, picks in enumerate(batches):
                found = task.measure(warm.module, self._batch([rows[i] for i in picks], warm))
                if number < real:
                    figures = (found.correct, found.loss, found.count, found.exact, len(picks))
                    sums += torch.tensor([float(f) for f in figures], dtype=torch.float64)
        sums = sums.to(warm.device)
        torch.distributed.all_reduce(sums)
        correct, loss, count, exact, rows_seen = sums.tolist()
        metrics = {"eval_correct": correct, "eval_loss_sum": loss, "eval_examples": count}
        if count != rows_seen:  # of a language model, whose predictions are tokens
            metrics |= {"eval_exact": exact, "eval_rows": rows_seen}
        return metrics

    def _batch(self, examples: Sequence[Example], warm: WarmEngine) -> dict[str, Any]:
        assert self.task is not None
        return {name: value.to(warm.device) for name, value in self.task.batch(examples).items()}

    def _train(
        self, warm: WarmEngine, task: TrainTask, start: Mapping[str, Array], progress: OnProgress
    ) -> dict[str, float]:
        """Mean loss of the last steps, and how many were made, if not all."""
        import torch

        rows, schedule = self.examples["train"], parse_schedule(task.schedule)
        torch.manual_seed(derive_seed(task, self.site.name, f"dropout/{self.rank}"))
        warm.mode(train=True)
        extra = self._drift(warm, task, start)
        losses: list[float] = []
        order = picks_for_steps(len(rows), task.batch_size, task.steps, derive_seed(task, self.site.name, "order"))
        began, total_steps = time.monotonic(), task.steps * task.rounds
        for step, batch in enumerate(order, start=1):
            warm.set_lr(task.lr * schedule.factor((task.round - 1) * task.steps + step - 1, total_steps))
            losses.append(self._step(warm, [rows[i] for i in batch], extra, step))
            if step % max(1, task.steps // 20) == 0:
                progress(phase="train", step=step, steps=task.steps, loss=losses[-1])
            if self._is_late(warm, began, task.deadline):
                progress(phase="train", step=step, steps=task.steps, loss=losses[-1], text="stopped by the deadline")
                break
        tail = losses[-max(1, len(losses) // 4) :]
        stopped = {"steps_done": float(len(losses))} if len(losses) < task.steps else {}  # a name costs bytes
        return {"train_loss": sum(tail) / len(tail), **stopped}

    def _step(self, warm: WarmEngine, batch: Sequence[Example], extra: Callable[[], Any], step: int) -> float:
        """One optimizer step; the loss is the mean over what the whole batch predicts, on whatever rank.

        Raises:
            TrainingError: it is not finite.
        """
        assert self.task is not None
        mine, total = batch[self.rank :: self.world], 0.0
        whole = sum(e.predictions for e in batch)
        for at in range(0, len(mine), warm.micro):
            part = mine[at : at + warm.micro]
            loss = self.task.measure(warm.module, self._batch(part, warm)).loss / whole
            value = float(loss)
            if value != value or value in (float("inf"), float("-inf")):
                places = ", ".join(e.where for e in part)
                raise TrainingError("nan-loss", f"step {step}: loss {value}: of rows {places}")
            total += value
            last = at + warm.micro >= len(mine)
            warm.step(loss + (extra() if last else 0.0), last=last)
        return total

    def _drift(self, warm: WarmEngine, task: TrainTask, start: Mapping[str, Array]) -> Callable[[], Any]:
        """What the correction of drift adds to the loss of a step."""
        import torch

        match parse_drift_correction(task.correction):
            case FedProx(mu=mu):
                anchors = {n: torch.from_numpy(start[n]).to(warm.device) for n in warm.parameters}
                scale = mu / 2 / self.world  # the ranks' gradients are added
                return lambda: scale * sum(((p - anchors[n]) ** 2).sum() for n, p in warm.parameters.items())
            case _:
                return lambda: 0.0

    def _is_late(self, warm: WarmEngine, began: float, deadline: float) -> bool:
        """Whether any rank's time is over; all ranks stop at the same step."""
        if not deadline:
            return False
        import torch

        late = torch.tensor([float(time.monotonic() - began > deadline)], device=warm.device)
        torch.distributed.all_reduce(late)
        return bool(late.item())


def derive_seed(task: TrainTask, site: str, purpose: str) -> int:
    """63 bits from run seed, site, round and purpose."""
    text = f"{task.seed}/{site}/{task.round}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
