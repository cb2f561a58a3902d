"""Full fine-tuning of SmolLM2-135M on GSM8K by one optimizer, under DeepSpeed or alone.

python -m benchmarks.optim.zero_train --optimizer "galore(rank=128)" --stage 2 --steps 20
torchrun --nproc-per-node 2 -m benchmarks.optim.zero_train --stage 3 --out losses.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.settings.gsm8k import answer_loss, load_smollm2, questions
from fedcompress.optim import build_optimizer

BATCH = 4  # questions of a step, over all ranks


def main() -> None:
    """Train, and write the losses, seconds and bytes of state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="galore(rank=128,basis=power)")
    parser.add_argument("--stage", type=int, default=-1, help="of ZeRO; -1: one process without DeepSpeed")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, tokenizer = load_smollm2()
    rows = questions(tokenizer, "train")
    order = np.random.default_rng(0).permutation(len(rows))[: args.steps * BATCH].reshape(args.steps, BATCH)
    optimizer = build_optimizer(model.float(), args.optimizer, lr=args.lr)
    started = time.monotonic()
    train = _train_alone if args.stage < 0 else _train_sharded
    losses = train(model, optimizer, [[rows[i] for i in picks] for picks in order], args.stage)
    result = {"losses": losses, "seconds": time.monotonic() - started, "state": optimizer.state_bytes()}
    if args.out and int(os.environ.get("RANK", "0")) == 0:
        args.out.write_text(json.dumps(result) + "\n")


def _train_alone(model: Any, optimizer: Any, batches: list[Any], stage: int) -> list[float]:
    import torch

    losses = []
    for batch in batches:
        loss = answer_loss(model, batch, "mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"  step {len(losses)}: {losses[-1]:.4f}", file=sys.stderr)
    return losses


def _train_sharded(model: Any, optimizer: Any, batches: list[Any], stage: int) -> list[float]:
    """Train under DeepSpeed on the mean over all answers, as one process has it.

    The loss of a rank is the sum over its answers, divided by the tokens of all ranks.
    """
    import deepspeed
    import torch

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config = {
        "train_micro_batch_size_per_gpu": BATCH // world,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 50_000_000},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    losses = []
    for batch in batches:
        total = answer_loss(engine, batch[rank::world], "sum")
        sums = torch.tensor([total.item(), float(_count_tokens(batch[rank::world]))])  # loss and tokens of all ranks
        torch.distributed.all_reduce(sums)
        engine.backward(total * world / sums[1])
        engine.step()
        losses.append(float(sums[0] / sums[1]))
        if rank == 0:
            print(f"  stage {stage}, step {len(losses)}: {losses[-1]:.4f}", file=sys.stderr)
    return losses


def _count_tokens(rows: list[Any]) -> int:
    from benchmarks.settings.gsm8k import LENGTH

    return sum(max(0, min(len(a) + len(s), LENGTH) - len(a)) for a, s in rows)


if __name__ == "__main__":
    main()
