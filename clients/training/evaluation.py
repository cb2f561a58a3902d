"""Measures the published state on a site's held-out rows, before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clients.training.engines import WarmEngine
from clients.training.tasks import Example, Task


def evaluate(
    engine: WarmEngine, objective: Task, rows: Sequence[Example], *, rank: int, world: int
) -> dict[str, float]:
    """Sum losses and hits over the predictions of the held-out rows, which the ranks share; all ranks call it.

    Args:
        engine: holds the model.
        objective: what is learnt; measures a batch.
        rows: the held-out rows; equal on all ranks.
        rank: number of this rank.
        world: number of ranks.

    Returns:
        ``eval_correct``, ``eval_loss_sum`` (nats) and ``eval_examples`` (predictions); of a language model, whose
        predictions are tokens, also ``eval_exact`` and ``eval_rows``. The same on all ranks.
    """
    import torch

    batches, own = _share_batches(
        rows, 2 * engine.micro, rank=rank, world=world
    )  # no gradients: room for twice as many
    sums = torch.zeros(5, dtype=torch.float64)
    engine.mode(train=False)
    with torch.no_grad():
        for number, picks in enumerate(batches):
            batch = objective.batch([rows[i] for i in picks])
            measured = objective.measure(engine.module, {n: v.to(engine.device) for n, v in batch.items()})
            if number < own:
                figures = (measured.correct, measured.loss, measured.count, measured.exact, len(picks))
                sums += torch.tensor([float(f) for f in figures], dtype=torch.float64)
    sums = sums.to(engine.device)
    torch.distributed.all_reduce(sums)
    correct, loss, count, exact, rows_seen = sums.tolist()
    metrics = {"eval_correct": correct, "eval_loss_sum": loss, "eval_examples": count}
    if count != rows_seen:
        metrics |= {"eval_exact": exact, "eval_rows": rows_seen}
    return metrics


def _share_batches(rows: Sequence[Example], size: int, *, rank: int, world: int) -> tuple[list[list[int]], int]:
    """Return the row numbers of this rank's batches, and how many of them count.

    Every rank must take part in every gather, so that ranks with fewer rows add batches that are not counted.
    """
    mine = sorted(range(rank, len(rows), world), key=lambda i: len(rows[i].tokens))
    batches = [mine[start : start + size] for start in range(0, len(mine), size)]
    own = len(batches)
    most = math.ceil(math.ceil(len(rows) / world) / size)
    return batches + [mine[:1] or [0]] * (most - own), own
