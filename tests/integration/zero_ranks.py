"""Ranks that train a tiny Llama for each rule at once under DeepSpeed, and compare with one process.

Started by torchrun: ``zero_ranks.py JSON``, with ``cases`` of stage, bf16, fp16, accumulation, offload,
zero_init, save and load, or fsdp2, ``calls`` of optimizers, ``steps`` and ``width``. Rank 0 prints one
JSON line for each case.
"""

import copy
import json
import sys

import deepspeed
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from fedcompress.optim import build_optimizer
from fedcompress.optim.engine.optimizer import LowMemoryOptimizer

BATCH, LENGTH, LR, DECAY, CLIP = 4, 12, 1e-3, 0.01, 1.0
LLAMA = LlamaConfig(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=LENGTH,
    tie_word_embeddings=True,
)


class Models(torch.nn.Module):
    """One model for each call, all from one start; the loss is the sum of theirs."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        made = []
        for _ in calls:
            torch.manual_seed(0)
            made.append(LlamaForCausalLM(LLAMA))
        self.models = torch.nn.ModuleList(made)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([m(input_ids=tokens, labels=tokens).loss for m in self.models]).sum()


def optimizer_of(models: Models, calls: list[str]) -> LowMemoryOptimizer:
    """The groups of all models in one optimizer, with names of their own."""
    groups = []
    for number, (model, call) in enumerate(zip(models.models, calls, strict=True)):
        for group in build_optimizer(model, call, lr=LR, weight_decay=DECAY).param_groups:
            groups.append({**group, "names": [f"models.{number}.{n}" for n in group["names"]]})
    return LowMemoryOptimizer(groups, lr=LR, weight_decay=DECAY)


def batch(step: int, accumulation: int) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(step)
    return torch.randint(LLAMA.vocab_size, (accumulation, BATCH, LENGTH), generator=drawn)


def alone(calls: list[str], steps: int, case: dict, noise: int = 0) -> dict[str, torch.Tensor]:
    """Weights after training in one process, with float32 masters if the model is bfloat16.

    Ranks' shares of a batch go one after the other, since sums of bfloat16 depend on that. With ``noise``, a seed, each
    entry of a gradient is off by about a rounding error of float32.
    """
    drawn, accumulation, bf16 = torch.Generator().manual_seed(noise), case.get("accumulation", 1), case.get("bf16")
    master, world = Models(calls), dist.get_world_size()
    if bf16:
        master.bfloat16().float()  # as DeepSpeed's masters start
    optimizer = optimizer_of(master, calls)
    model = copy.deepcopy(master).bfloat16() if bf16 else master
    for step in range(steps):
        for tokens in batch(step, accumulation):
            for share in tokens.chunk(world if bf16 else 1):
                (model(share) / accumulation / (world if bf16 else 1)).backward()
        if bf16:
            for held, low in zip(master.parameters(), model.parameters(), strict=True):
                held.grad, low.grad = low.grad.float(), None
        if noise:
            for held in master.parameters():
                held.grad *= 1 + torch.finfo(torch.float32).eps * torch.randn(held.shape, generator=drawn)
        if case.get("clip", CLIP):
            torch.nn.utils.clip_grad_norm_(master.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if bf16:
            with torch.no_grad():
                for held, low in zip(master.parameters(), model.parameters(), strict=True):
                    low.copy_(held)
    return {n: p.detach().float() for n, p in model.named_parameters()}


def config_of(case: dict) -> dict:
    zero = {"stage": case["stage"]}
    if case.get("offload"):
        zero["offload_optimizer"] = {"device": "cpu"}
    dtype = {kind: {"enabled": True} for kind in ("bf16", "fp16") if case.get(kind)}
    return dtype | {
        "train_micro_batch_size_per_gpu": BATCH // dist.get_world_size(),
        "gradient_accumulation_steps": case.get("accumulation", 1),
        "gradient_clipping": case.get("clip", CLIP),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


def engine_of(calls: list[str], case: dict) -> tuple[deepspeed.DeepSpeedEngine, LowMemoryOptimizer]:
    config = config_of(case)
    if case.get("zero_init"):
        start = dict(Models(calls).named_parameters())
        with deepspeed.zero.Init(config_dict_or_path=config):
            models = Models(calls)
        for name, parameter in models.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                parameter.copy_(start[name])
    else:
        models = Models(calls)
    if "load" in case:
        models.load_state_dict(torch.load(case["load"] + ".model", weights_only=True), strict=False)  # heads are tied
    optimizer = optimizer_of(models, calls)
    return deepspeed.initialize(model=models, optimizer=optimizer, config=config)[0], optimizer


def weights_of(engine: deepspeed.DeepSpeedEngine, stage: int) -> dict[str, torch.Tensor]:
    weights = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            weights[name] = parameter.detach().float().clone()
    return weights


def sharded(calls: list[str], steps: range, case: dict) -> tuple[dict[str, torch.Tensor], list[dict[str, int]]]:
    """Weights after training with DeepSpeed, and how often each rank ran each rule."""
    rank, world = dist.get_rank(), dist.get_world_size()
    engine, optimizer = engine_of(calls, case)
    if "load" in case:
        optimizer.load_state_dict(torch.load(case["load"], weights_only=True))
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step in steps:
        for tokens in batch(step, case.get("accumulation", 1)):
            engine.backward(engine(tokens[mine]))
            engine.step()
    weights = weights_of(engine, case["stage"])
    if "save" in case:
        state = optimizer.whole_state_dict()
        if rank == 0:
            torch.save(state, case["save"])
            torch.save(weights, case["save"] + ".model")
    counts: list = [None] * world
    dist.all_gather_object(counts, dict(optimizer.calls))
    engine.destroy()
    return weights, counts


def fully_sharded(calls: list[str], steps: int, case: dict) -> tuple[dict[str, torch.Tensor], list[dict[str, int]]]:
    """The same with FSDP2, or with accelerate, which has no more than data parallelism on a CPU."""
    from torch.distributed.fsdp import fully_shard

    rank, world, models = dist.get_rank(), dist.get_world_size(), Models(calls)
    if case["fsdp2"] == "accelerate":
        from accelerate import Accelerator

        prepared, optimizer = Accelerator(cpu=True).prepare(models, optimizer_of(models, calls))
        optimizer = optimizer.optimizer
    else:
        for model in models.models:
            for layer in model.model.layers:
                fully_shard(layer)
        prepared = fully_shard(models)
        optimizer = optimizer_of(models, calls)
    for step in range(steps):
        for tokens in batch(step, case.get("accumulation", 1)):
            mine = tokens[rank * BATCH // world : (rank + 1) * BATCH // world]
            (prepared(mine) / case.get("accumulation", 1)).backward()
        torch.nn.utils.clip_grad_norm_(models.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    weights = {n: getattr(p.detach(), "full_tensor", p.detach)() for n, p in models.named_parameters()}
    counts: list = [None] * world
    dist.all_gather_object(counts, dict(optimizer.calls))
    return weights, counts


def overflow(calls: list[str], case: dict) -> dict:
    """A step whose gradients overflow must leave weights and state as they are; the next one must not."""
    # DeepSpeed asks for instructions that make fp16 fast; torch computes without them too.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    engine, optimizer = engine_of(calls, case)
    tokens = batch(0, 1)[0][dist.get_rank() :: dist.get_world_size()]
    engine.backward(engine(tokens) * 1e30)
    engine.step()
    skipped, state = engine.skipped_steps, optimizer.state_bytes()
    before = weights_of(engine, case["stage"])
    while not engine.was_step_applied():
        engine.backward(engine(tokens))
        engine.step()
    after = weights_of(engine, case["stage"])
    moved = sum(not torch.equal(before[n], after[n]) for n in before)
    engine.destroy()
    return {"case": case, "skipped": skipped, "state": state, "moved": moved, "bytes": optimizer.state_bytes()}


def compare(calls: list[str], case: dict, steps: int) -> dict:
    """Errors by call, how often rules ran on each parameter over all ranks, and at most on one."""
    reference = alone(calls, steps, case)
    start = {n: p.detach() for n, p in Models(calls).named_parameters()}
    noisy = [alone(calls, steps, case, seed) for seed in case.get("noise", ())]
    if "fsdp2" in case:
        found, counts = fully_sharded(calls, steps, case)
    else:
        found, counts = sharded(calls, range(case.get("first", 0), case.get("last", steps)), case)
    errors = {}
    for number, call in enumerate(calls):
        names = [n for n in reference if n.startswith(f"models.{number}.")]
        ours, theirs, before = (torch.cat([w[n].flatten() for n in names]) for w in (found, reference, start))
        off = (ours - theirs).abs() > 1e-5 * theirs.abs().mean()
        moved = (theirs - before).norm()
        errors[call] = {
            "relative": float((ours - theirs).norm() / theirs.norm()),
            "of_movement": float((ours - theirs).norm() / moved),
            "share_off": float(off.float().mean()),
        }
        for key, weights in enumerate(noisy):
            apart = torch.cat([weights[n].flatten() for n in names]) - theirs
            errors[call][f"noise{key}"] = float(apart.norm() / theirs.norm())
    totals = {n: sum(c.get(n, 0) for c in counts) for n in reference}
    return {"case": case, "errors": errors, "totals": totals, "most": max(max(c.values()) for c in counts)}


def main() -> None:
    asked = json.loads(sys.argv[1])
    LLAMA.hidden_size = asked.get("width", LLAMA.hidden_size)
    LLAMA.head_dim = LLAMA.hidden_size // LLAMA.num_attention_heads
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for case in asked["cases"]:
        result = overflow(asked["calls"], case) if "fp16" in case else compare(asked["calls"], case, asked["steps"])
        if dist.get_rank() == 0:
            print("RESULT " + json.dumps(result), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
