"""Loss against bytes of state: small models from scratch and SmolLM2, learning rate tuned for each rule."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import row
from benchmarks.settings.base import data_folder
from fedcompress.optim import build

SEEDS = (0, 1, 2)
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
# Subspaces hold a quarter of a side in all rules; refreshes are every 50 of 400 steps.
RULES = (
    "adamw",
    "adamw8bit",
    "frugal(update_gap=50)",
    "frugal(update_gap=50,state=8bit)",
    "frugal(update_gap=50,carry=keep)",
    "frugal(update_gap=50,projection=svd)",
    "frugal(update_gap=50,projection=dct)",
    "galore(rank=24,update_gap=50)",
    "galore(rank=24,update_gap=50,basis=power)",
    "fira(rank=24,update_gap=50)",
    "apollo(rank=24,update_gap=50)",
    "apollo-mini(update_gap=50,scale=9.8)",
    "dct-adamw(rank=24)",
    "ldadam(rank=24)",
    "q-galore(rank=24,update_gap=50)",
    "lion",
    "signsgd",
    "badam(update_gap=50)",
    "lisa(update_gap=50)",
)


class Letters:
    """A Llama of 0.35M parameters from scratch, on the characters of Tiny Shakespeare."""

    steps, length, rows, width, layers = 400, 48, 16, 96, 3

    def __init__(self) -> None:
        import torch

        text = (data_folder("tinyshakespeare") / "input.txt").read_text()
        letters = sorted(set(text))
        ids = torch.tensor([letters.index(c) for c in text])
        self.vocabulary, cut = len(letters), len(ids) * 9 // 10
        self.train, held = ids[:cut], ids[cut:]
        self.held = held[: 64 * (self.length + 1)].view(64, -1)

    def model(self, seed: int) -> Any:
        """Random weights."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        shape = {"hidden_size": self.width, "intermediate_size": 3 * self.width, "num_hidden_layers": self.layers}
        heads = {"num_attention_heads": 4, "vocab_size": self.vocabulary, "tie_word_embeddings": False}
        return LlamaForCausalLM(LlamaConfig(**shape, **heads))

    def loss(self, model: Any, windows: Any) -> Any:
        """Mean loss of a letter."""
        import torch

        logits = model(input_ids=windows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    def batch(self, draw: Any) -> Any:
        """Random windows."""
        import torch

        starts = torch.randint(len(self.train) - self.length - 1, (self.rows,), generator=draw).tolist()
        return torch.stack([self.train[s : s + self.length + 1] for s in starts])


@cache
def _letters() -> Letters:
    return Letters()


def trained(rule: str, lr: float, seed: int) -> dict[str, Any]:
    """Loss of held-out text, and bytes of state."""
    import torch

    task = _letters()
    model, draw = task.model(seed), torch.Generator().manual_seed(seed)
    optimizer = build(model, rule, lr=lr, seed=seed)
    warm, steps = task.steps // 10, task.steps
    schedule: Callable[[int], float] = lambda n: min((n + 1) / warm, (steps - n) / (steps - warm))  # noqa: E731
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for _ in range(steps):
        loss = task.loss(model, task.batch(draw))
        if not loss.isfinite():
            return {"loss": 99.0, "bytes": optimizer.state_bytes()}
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        return {"loss": float(task.loss(model, task.held)), "bytes": optimizer.state_bytes()}


def cell(rule: str, lr: float, seed: int, out: Path) -> dict[str, Any]:
    """A run, kept as JSON."""
    text = json.dumps(["letters", Letters.steps, rule, lr, seed])
    path = out / "letters" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        done = trained(rule, lr, seed)
        print(f"  {text} {done['loss']:.4f} {done['bytes']}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cell": text, **done}) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def tuned(rule: str, out: Path) -> tuple[float, list[dict[str, Any]]]:
    """The best learning rate of seed 0 on the grid, and the runs of all seeds with it."""
    best = min(GRID, key=lambda lr: cell(rule, lr, 0, out)["loss"])
    return best, [cell(rule, best, seed, out) for seed in SEEDS]


def rows(out: Path) -> list[dict[str, Any]]:
    """Mean of three seeds for each rule, and a picture."""
    found, points = [], {}
    for rule in RULES:
        lr, runs = tuned(rule, out)
        losses, taken = [r["loss"] for r in runs], mean(r["bytes"] for r in runs)
        edge = ", at the edge of the grid" if lr in (GRID[0], GRID[-1]) else ""
        points[rule] = (taken, mean(losses))
        note = f"{taken / 1e6:.2f} MB of state; lr {lr}{edge}"
        found.append(row(f"letters: {rule}", mean(losses), "nats", spread=losses, note=note))
    ours, theirs = points["frugal(update_gap=50)"], points["galore(rank=24,update_gap=50)"]
    note = f"{ours[1]:.4f} with {ours[0] / 1e6:.2f} MB against {theirs[1]:.4f} with {theirs[0] / 1e6:.2f} MB"
    verdict = {"target": ">= 0", "pass": ours[1] <= theirs[1] and ours[0] <= theirs[0]}
    found.append(row("letters: FRUGAL's lead over GaLore", theirs[1] - ours[1], "nats", note=note, **verdict))
    _picture(points, out / "letters.png")
    return found


def _picture(points: dict[str, tuple[float, float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    for rule, (taken, loss) in points.items():
        if loss < 10:
            axes.scatter(taken / 1e6, loss, s=20)
            axes.annotate(rule, (taken / 1e6, loss), fontsize=7, xytext=(4, 2), textcoords="offset points")
    axes.set_xlabel("MB of optimizer state")
    axes.set_ylabel("held-out loss, nats a letter")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
