"""These ranks train a tiny Llama for each rule at once under DeepSpeed, and compare with one process.

torchrun starts them as ``zero_ranks.py JSON``. The JSON has ``cases`` (each with stage, bf16, fp16, accumulation,
offload, zero_init, save and load, or with fsdp2), ``calls`` of optimizers, ``steps``, ``width`` and, for a mixture,
the number of ``experts``. Rank 0 prints one JSON line for each case.
"""

import copy
import json
import sys

import deepspeed
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from fedcompress.optim import build_optimizer
from fedcompress.optim.engine.optimizer import LowMemoryOptimizer

BATCH = 4  # examples of a micro-batch, over all ranks
LENGTH = 12  # tokens of an example
LR = 1e-3
DECAY = 0.01
CLIP = 1.0  # global norm of the gradient
SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
}
LLAMA = LlamaConfig(**SIZES)


MIXTRAL = MixtralConfig(**{**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2})
request: dict = {}


def build_model() -> torch.nn.Module:
    return MixtralForCausalLM(MIXTRAL) if request.get("experts") else LlamaForCausalLM(LLAMA)


class Models(torch.nn.Module):
    """One model for each call, all from one start; the loss is the sum of theirs."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        models = []
        for _ in calls:
            torch.manual_seed(0)
            models.append(build_model())
        self.models = torch.nn.ModuleList(models)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([m(input_ids=tokens, labels=tokens).loss for m in self.models]).sum()


def build_optimizer_of_all(models: Models, calls: list[str]) -> LowMemoryOptimizer:
    """Put the groups of all models into one optimizer, under names of their own."""
    groups = []
    for number, (model, call) in enumerate(zip(models.models, calls, strict=True)):
        for group in build_optimizer(model, call, lr=LR, weight_decay=DECAY).param_groups:
            groups.append({**group, "names": [f"models.{number}.{n}" for n in group["names"]]})
    return LowMemoryOptimizer(groups, lr=LR, weight_decay=DECAY)


def draw_batch(step: int, accumulation: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(LLAMA.vocab_size, (accumulation, BATCH, LENGTH), generator=generator)


def train_alone(calls: list[str], steps: int, case: dict, noise: int = 0) -> dict[str, torch.Tensor]:
    """Return the weights after training in one process, with float32 masters if the model is bfloat16.

    Ranks' shares of a batch go one after the other, since sums of bfloat16 depend on that. With ``noise``, a seed, each
    entry of a gradient is off by about a rounding error of float32.
    """
    generator = torch.Generator().manual_seed(noise)
    accumulation = case.get("accumulation", 1)
    bf16 = case.get("bf16")
    world = dist.get_world_size()
    master = Models(calls)
    if bf16:
        master.bfloat16().float()  # as DeepSpeed's masters start
    optimizer = build_optimizer_of_all(master, calls)
    model = copy.deepcopy(master).bfloat16() if bf16 else master
    for step in range(steps):
        for tokens in draw_batch(step, accumulation):
            for share in tokens.chunk(world if bf16 else 1):
                (model(share) / accumulation / (world if bf16 else 1)).backward()
        if bf16:
            for high, low in zip(master.parameters(), model.parameters(), strict=True):
                high.grad = low.grad.float()
                low.grad = None
        if noise:
            for high in master.parameters():
                high.grad *= 1 + torch.finfo(torch.float32).eps * torch.randn(high.shape, generator=generator)
        if case.get("clip", CLIP):
            torch.nn.utils.clip_grad_norm_(master.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if bf16:
            with torch.no_grad():
                for high, low in zip(master.parameters(), model.parameters(), strict=True):
                    low.copy_(high)
    return {n: p.detach().float() for n, p in model.named_parameters()}


def build_config(case: dict) -> dict:
    zero = {"stage": case["stage"], **case.get("options", {})}
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


def build_engine(calls: list[str], case: dict) -> tuple[deepspeed.DeepSpeedEngine, LowMemoryOptimizer]:
    config = build_config(case)
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
    optimizer = build_optimizer_of_all(models, calls)
    return deepspeed.initialize(model=models, optimizer=optimizer, config=config)[0], optimizer


def read_weights(engine: deepspeed.DeepSpeedEngine, stage: int) -> dict[str, torch.Tensor]:
    weights = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            weights[name] = parameter.detach().float().clone()
    return weights


def train_sharded(calls: list[str], steps: range, case: dict) -> tuple[dict[str, torch.Tensor], list[dict[str, int]]]:
    """Return the weights after training with DeepSpeed, and how often each rank ran a rule on each parameter."""
    rank, world = dist.get_rank(), dist.get_world_size()
    engine, optimizer = build_engine(calls, case)
    if "load" in case:
        optimizer.load_state_dict(torch.load(case["load"], weights_only=True))
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step in steps:
        for tokens in draw_batch(step, case.get("accumulation", 1)):
            engine.backward(engine(tokens[mine]))
            engine.step()
    weights = read_weights(engine, case["stage"])
    if "save" in case:
        state = optimizer.whole_state_dict()
        if rank == 0:
            torch.save(state, case["save"])
            torch.save(weights, case["save"] + ".model")
    counts: list = [None] * world
    dist.all_gather_object(counts, dict(optimizer.calls))
    engine.destroy()
    return weights, counts


def train_fully_sharded(
    calls: list[str], steps: int, case: dict
) -> tuple[dict[str, torch.Tensor], list[dict[str, int]]]:
    """Train with FSDP2, or with accelerate, which has no more than data parallelism on a CPU; return the same."""
    from torch.distributed.fsdp import fully_shard

    rank = dist.get_rank()
    world = dist.get_world_size()
    models = Models(calls)
    if case["fsdp2"] == "accelerate":
        from accelerate import Accelerator

        prepared, optimizer = Accelerator(cpu=True).prepare(models, build_optimizer_of_all(models, calls))
        optimizer = optimizer.optimizer
    else:
        for model in models.models:
            for layer in model.model.layers:
                fully_shard(layer)
        prepared = fully_shard(models)
        optimizer = build_optimizer_of_all(models, calls)
    for step in range(steps):
        for tokens in draw_batch(step, case.get("accumulation", 1)):
            mine = tokens[rank * BATCH // world : (rank + 1) * BATCH // world]
            (prepared(mine) / case.get("accumulation", 1)).backward()
        torch.nn.utils.clip_grad_norm_(models.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    weights = {n: getattr(p.detach(), "full_tensor", p.detach)() for n, p in models.named_parameters()}
    counts: list = [None] * world
    dist.all_gather_object(counts, dict(optimizer.calls))
    return weights, counts


def run_overflow(calls: list[str], case: dict) -> dict:
    """Run a step whose gradients overflow, which must leave weights and state as they are, and one that must not."""
    # DeepSpeed asks for instructions that make fp16 fast; torch computes without them too.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    engine, optimizer = build_engine(calls, case)
    tokens = draw_batch(0, 1)[0][dist.get_rank() :: dist.get_world_size()]
    engine.backward(engine(tokens) * 1e30)
    engine.step()
    skipped, state = engine.skipped_steps, optimizer.state_bytes()
    before = read_weights(engine, case["stage"])
    while not engine.was_step_applied():
        engine.backward(engine(tokens))
        engine.step()
    after = read_weights(engine, case["stage"])
    moved = sum(not torch.equal(before[n], after[n]) for n in before)
    engine.destroy()
    return {"case": case, "skipped": skipped, "state": state, "moved": moved, "bytes": optimizer.state_bytes()}


def compare(calls: list[str], case: dict, steps: int) -> dict:
    """Return the errors by call, and how often rules ran on each parameter: over all ranks, and at most on one."""
    reference = train_alone(calls, steps, case)
    start = {n: p.detach() for n, p in Models(calls).named_parameters()}
    noisy = [train_alone(calls, steps, case, seed) for seed in case.get("noise", ())]
    if "fsdp2" in case:
        weights, counts = train_fully_sharded(calls, steps, case)
    else:
        weights, counts = train_sharded(calls, range(case.get("first", 0), case.get("last", steps)), case)
    errors = {}
    for number, call in enumerate(calls):
        names = [n for n in reference if n.startswith(f"models.{number}.")]
        ours, theirs, before = (torch.cat([w[n].flatten() for n in names]) for w in (weights, reference, start))
        off = (ours - theirs).abs() > 1e-5 * theirs.abs().mean()
        moved = (theirs - before).norm()
        errors[call] = {
            "relative": float((ours - theirs).norm() / theirs.norm()),
            "of_movement": float((ours - theirs).norm() / moved),
            "share_off": float(off.float().mean()),
        }
        for key, other in enumerate(noisy):
            apart = torch.cat([other[n].flatten() for n in names]) - theirs
            errors[call][f"noise{key}"] = float(apart.norm() / theirs.norm())
    totals = {n: sum(c.get(n, 0) for c in counts) for n in {name for c in counts for name in c}}
    return {"case": case, "errors": errors, "totals": totals, "most": max(max(c.values()) for c in counts)}


def main() -> None:
    request.update(json.loads(sys.argv[1]))
    LLAMA.hidden_size = request.get("width", LLAMA.hidden_size)
    LLAMA.head_dim = LLAMA.hidden_size // LLAMA.num_attention_heads
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for case in request["cases"]:
        if "fp16" in case:
            result = run_overflow(request["calls"], case)
        else:
            result = compare(request["calls"], case, request["steps"])
        if dist.get_rank() == 0:
            print("RESULT " + json.dumps(result), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
