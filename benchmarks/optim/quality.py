"""Compares loss and bytes of state, with the learning rate tuned for each rule on the task's grid, for three seeds."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import row
from benchmarks.optim.tasks import load_task
from fedcompress.optim import build_optimizer

SEEDS = (0, 1, 2)
# {rank} is a quarter of the width, which is also the default density; {gap} is the number of steps between refreshes.
SMALL = (
    "adamw",
    "adamw8bit",
    "frugal(update_gap={gap})",
    "frugal(update_gap={gap},state=8bit)",
    "frugal(update_gap={gap},state=8bit,free_scale=0.1)",
    "frugal(update_gap={gap},carry=keep)",
    "frugal(update_gap={gap},projection=svd)",
    "frugal(update_gap={gap},projection=dct)",
    "galore(rank={rank},update_gap={gap})",
    "galore(rank={rank},update_gap={gap},basis=power)",
    "fira(rank={rank},update_gap={gap})",
    "apollo(rank={rank},update_gap={gap})",
    "dct-adamw(rank={rank})",
    "ldadam(rank={rank})",
    "q-galore(rank={rank},update_gap={gap})",
    "lion",
    "signsgd",
    "badam(update_gap={gap},others=trained)",
    "lisa(update_gap={gap})",
)
LARGE = (
    "adamw",
    "frugal(update_gap={gap},state=8bit,free_scale=0.1)",
    "galore(rank={rank},update_gap={gap},basis=power)",
)
RULES = {"letters": SMALL, "stories260k": SMALL, "smollm2": LARGE}


def train(task_name: str, rule: str, lr: float, seed: int) -> dict[str, Any]:
    """Train one model and return the loss of held-out text and the largest bytes of state.

    The learning rate warms up over a tenth of the steps and then falls linearly to 0.

    Args:
        task_name: name of the task.
        rule: call of the optimizer.
        lr: peak of the learning rate.
        seed: seed of weights and batches.

    Returns:
        ``loss`` in nats, 99 if it diverged, and ``bytes``.
    """
    import torch

    task = load_task(task_name)
    model = task.model(seed)
    draw = torch.Generator().manual_seed(seed)
    optimizer = build_optimizer(model, rule, lr=lr, seed=seed)
    steps = task.steps
    warm = max(1, steps // 10)

    def schedule(step: int) -> float:
        return min((step + 1) / warm, (steps - step) / (steps - warm))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    most = 0
    for _ in range(steps):
        loss = task.loss(model, task.batch(draw))
        if not loss.isfinite():
            return {"loss": 99.0, "bytes": most}
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        most = max(most, optimizer.state_bytes())
    with torch.no_grad():
        return {"loss": task.held_loss(model), "bytes": most}


def run_cell(task: str, rule: str, lr: float, seed: int, out: Path) -> dict[str, Any]:
    """Return the result of one run, which is cached as JSON.

    Args:
        task: name of the task.
        rule: call of the optimizer.
        lr: peak of the learning rate.
        seed: seed of weights and batches.
        out: folder of the cache.

    Returns:
        ``loss`` and ``bytes``.
    """
    text = json.dumps([task, load_task(task).steps, rule, lr, seed])
    path = out / task / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        result = train(task, rule, lr, seed)
        print(f"  {text} {result['loss']:.4f} {result['bytes']}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cell": text, **result}) + "\n")
    cached: dict[str, Any] = json.loads(path.read_text())
    return cached


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of every task."""
    return [r for task in RULES for r in task_rows(task, out)]


def task_rows(name: str, out: Path) -> list[dict[str, Any]]:
    """Return the mean of three seeds for each rule, and FRUGAL's lead over GaLore; draw a picture as well."""
    task = load_task(name)
    table = []
    points = {}
    for template in RULES[name]:
        rule = template.format(rank=task.rank, gap=task.gap)
        lr = min(task.grid, key=lambda rate: run_cell(name, rule, rate, 0, out)["loss"])
        runs = [run_cell(name, rule, lr, seed, out) for seed in SEEDS]
        losses = [r["loss"] for r in runs]
        state = mean(r["bytes"] for r in runs)
        edge = ", at the edge of the grid" if lr in (task.grid[0], task.grid[-1]) else ""
        points[rule] = (state, mean(losses))
        note = f"{state / 1e6:.2f} MB of state; lr {lr}{edge}"
        table.append(row(f"{name}: {rule}", mean(losses), "nats", spread=losses, note=note))
    theirs = min((p for r, p in points.items() if r.startswith("galore")), key=lambda p: p[1])
    ours = min((p for r, p in points.items() if r.startswith("frugal") and p[0] <= theirs[0]), key=lambda p: p[1])
    note = f"{ours[1]:.4f} with {ours[0] / 1e6:.2f} MB against {theirs[1]:.4f} with {theirs[0] / 1e6:.2f} MB"
    verdict = {"target": ">= 0", "pass": ours[1] <= theirs[1] and ours[0] <= theirs[0]}
    table.append(row(f"{name}: FRUGAL's lead over GaLore", theirs[1] - ours[1], "nats", note=note, **verdict))
    _picture(name, points, out / f"{name}.png")
    return table


def _picture(name: str, points: dict[str, tuple[float, float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    for rule, (state, loss) in points.items():
        if loss < 10:
            axes.scatter(state / 1e6, loss, s=20)
            axes.annotate(rule, (state / 1e6, loss), fontsize=7, xytext=(4, 2), textcoords="offset points")
    axes.set_title(name)
    axes.set_xlabel("MB of optimizer state")
    axes.set_ylabel("held-out loss, nats")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
