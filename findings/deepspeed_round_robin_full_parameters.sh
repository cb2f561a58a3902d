#!/usr/bin/env bash
# DeepSpeed 0.19.8 with torch 2.13.0, ZeRO-1 and ZeRO-2 on two gloo ranks of a CPU.
#
# With "round_robin_gradients": true the flat partitions hold the parameters of a group in an order of their own, but the
# map from parameters to partitions is built in the order of the group (it follows the other order only where a parameter
# was padded). So safe_get_full_fp32_param returns the entries of another parameter wherever the two orders differ, right
# after deepspeed.initialize, without an error or a warning. Without the option each parameter is returned as it is.
#
# What reads these maps (safe_get_* and safe_set_*, universal checkpoints, optimizers that look up their shards) needs to
# find the places by itself when the option is set.
#
# Seen (stage, option, how many of the 4 parameters are returned as they are):
#     stage 1 round_robin False: 4 of 4
#     stage 1 round_robin True: 2 of 4
#     stage 2 round_robin False: 4 of 4
#     stage 2 round_robin True: 2 of 4
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet deepspeed==0.19.8 torch==2.13.0 numpy
cat > "$folder/show.py" <<'PYTHON'
import os

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param


def count_right(stage: int, round_robin: bool) -> int:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8, bias=False) for _ in range(4)])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "round_robin_gradients": round_robin},
    }
    deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3), config=config)
    return sum(torch.equal(safe_get_full_fp32_param(p), before[name]) for name, p in model.named_parameters())


deepspeed.init_distributed("gloo")
for stage in (1, 2):
    for round_robin in (False, True):
        right = count_right(stage, round_robin)
        if torch.distributed.get_rank() == 0:
            with open(os.environ["FOUND"], "a") as file:
                file.write(f"stage {stage} round_robin {round_robin}: {right} of 4\n")
PYTHON
export FOUND="$folder/found" DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
PATH="$folder/venv/bin:$PATH" torchrun --nproc_per_node=2 \
  --rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:0 "$folder/show.py" > "$folder/log" 2>&1 || { tail -20 "$folder/log"; exit 1; }
cat "$FOUND"
diff "$FOUND" - <<'SEEN'
stage 1 round_robin False: 4 of 4
stage 1 round_robin True: 2 of 4
stage 2 round_robin False: 4 of 4
stage 2 round_robin True: 2 of 4
SEEN
echo "as described"
