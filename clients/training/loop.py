"""One job of a rank: evaluate the published state, train, hand back the tensors."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients.site import SiteConfig
from clients.training.data import Rows, collate, load_rows, picks_for_steps
from clients.training.engine import WarmEngine
from fedcompress.adapters import load_adapter, save_adapter
from fedcompress.adapters.classifier import add_adapter, build_classifier, layout_of
from fedcompress.config import TrainTask
from fedcompress.errors import MismatchError

EVAL_BATCH = 64
OnProgress = Callable[..., None]


@dataclass
class Trainer:
    """What a rank keeps warm between jobs: base model, engine, tokenized rows."""

    site: SiteConfig
    rank: int
    world: int
    loads: int = 0
    key: tuple[Any, ...] = ()
    warm: WarmEngine | None = None
    rows: dict[str, Rows] = field(default_factory=dict)
    tokenizer: Any = None

    def run(self, task: TrainTask, published: Path, out: Path, progress: OnProgress) -> dict[str, float]:
        """Metrics of the job; rank 0 writes the trained adapter to ``out``.

        Raises:
            MismatchError: the model built here has another layout than the coordinator's.
            ConfigError: a bad row, or settings that do not fit together.
        """
        adapter = load_adapter(published)
        started = time.monotonic()
        warm = self._prepare(task, adapter.config, progress)
        loaded = time.monotonic()
        warm.begin(adapter.tensors, task)
        progress(phase="evaluate")
        metrics = self._evaluate(warm)
        evaluated = time.monotonic()
        metrics |= {
            "train_examples": float(len(self.rows["train"])),
            "model_loads": float(self.loads),
            "seconds_load": loaded - started,
            "seconds_evaluate": evaluated - loaded,
        }
        if task.steps:
            metrics["train_loss"] = self._train(warm, task, progress)
            metrics["seconds_train"] = time.monotonic() - evaluated
            trained = warm.read()
            if self.rank == 0:
                save_adapter(
                    out, adapter.config, adapter.layout, {t.name: trained[t.name] for t in adapter.layout.tensors}
                )
        return metrics

    def _prepare(self, task: TrainTask, config: Any, progress: OnProgress) -> WarmEngine:
        """Load model and rows, unless the last job used the same."""
        from transformers import AutoTokenizer

        key = (task.adapter_config, task.labels, task.head, task.batch_size, task.optimizer, task.max_length)
        if self.warm is not None and key == self.key:
            return self.warm
        progress(phase="load", text=str(self.site.model))
        self.tokenizer = AutoTokenizer.from_pretrained(self.site.model)
        data = self.site.data
        self.rows = {
            name: load_rows(path, data, task.labels, self.tokenizer, task.max_length)
            for name, path in (("train", data.train), ("heldout", data.heldout))
        }
        model = add_adapter(build_classifier(self.site.model, len(task.labels)), config)
        here = layout_of(model)
        if here.to_json() != task.layout:
            raise MismatchError("layout-mismatch", "adapter: the base model here gives other trainable tensors")
        self.warm = WarmEngine(model, self.site.engine, task)
        self.key = key
        self.loads += 1
        return self.warm

    def _evaluate(self, warm: WarmEngine) -> dict[str, float]:
        """Accuracy and mean loss on the held-out rows, shared among the ranks."""
        import torch

        rows, module = self.rows["heldout"], warm.engine.module
        mine = sorted(range(self.rank, len(rows), self.world), key=lambda i: len(rows.tokens[i]))
        sums = torch.zeros(3, dtype=torch.float64)
        batches = [mine[at : at + EVAL_BATCH] for at in range(0, len(mine), EVAL_BATCH)]
        if warm.stage == 3:  # every rank must take part in every gather
            batches += [mine[:1] or [0]] * (-(-len(rows) // self.world) // EVAL_BATCH + 1 - len(batches))
        real = -(-len(mine) // EVAL_BATCH)
        module.eval()
        with torch.no_grad():
            for number, picks in enumerate(batches):
                ids, mask, labels = collate(rows, picks, self.tokenizer.pad_token_id)
                logits = module(input_ids=ids.to(warm.engine.device), attention_mask=mask.to(warm.engine.device))
                if number < real:
                    logits, labels = logits.float().cpu(), labels
                    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
                    sums += torch.tensor([(logits.argmax(1) == labels).sum(), loss, len(picks)], dtype=torch.float64)
        sums = sums.to(warm.engine.device)
        torch.distributed.all_reduce(sums)
        correct, loss, count = sums.tolist()
        return {"eval_correct": correct, "eval_loss_sum": loss, "eval_examples": count}

    def _train(self, warm: WarmEngine, task: TrainTask, progress: OnProgress) -> float:
        """Mean loss of the last steps on this rank."""
        import torch

        rows, engine = self.rows["train"], warm.engine
        torch.manual_seed(_seed(task, self.site.name, f"dropout/{self.rank}"))
        engine.module.train()
        losses: list[float] = []
        order = picks_for_steps(len(rows), task.batch_size, task.steps, _seed(task, self.site.name, "order"))
        for step, batch in enumerate(order, start=1):
            mine, total = batch[self.rank :: self.world], 0.0
            for at in range(0, len(mine), warm.micro):
                ids, mask, labels = collate(rows, mine[at : at + warm.micro], self.tokenizer.pad_token_id)
                logits = engine(input_ids=ids.to(engine.device), attention_mask=mask.to(engine.device))
                loss = torch.nn.functional.cross_entropy(logits.float(), labels.to(engine.device))
                warm.step(loss)
                total += loss.item() / warm.accumulation
            losses.append(total)
            if step % max(1, task.steps // 4) == 0:
                progress(phase="train", step=step, steps=task.steps, loss=total)
        tail = losses[-max(1, len(losses) // 4) :]
        return sum(tail) / len(tail)


def _seed(task: TrainTask, site: str, purpose: str) -> int:
    """63 bits from run seed, site, round and purpose."""
    text = f"{task.seed}/{site}/{task.round}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
