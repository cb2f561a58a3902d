"""These ranks save and resume by what Trainer, accelerate, DeepSpeed and torch offer for that.

torchrun starts them as ``library_ranks.py JSON``. The JSON has ``routes``, each with the name of a function below and
its arguments, and a ``folder``. Rank 0 prints one JSON line for each route: the largest difference of a weight between
the run that was resumed in the middle and the one that was not stopped. A rank that raises prints its error, and ends
all.
"""

from __future__ import annotations

import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

from fedcompress.optim import build_optimizer

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LR = 1e-2
HALF = 3  # steps before the checkpoint, and after it


def build_model(seed: int = 0, *, experts: bool = False) -> Any:
    torch.manual_seed(seed)
    if experts:
        sizes = {"num_key_value_heads": 2, "num_local_experts": 4}
        return MixtralForCausalLM(MixtralConfig(**SIZES, **sizes))
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def draw_tokens(step: int) -> torch.Tensor:
    """Draw this rank's rows."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(40, (4, 8), generator=generator)[dist.get_rank() :: dist.get_world_size()]


def train(prepared: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        tokens = draw_tokens(step)
        prepared(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def read_weights(model: Any) -> dict[str, torch.Tensor]:
    """Copy the whole weights; all ranks call it under FSDP2."""
    return {n: getattr(p.detach(), "full_tensor", p.detach)().clone() for n, p in model.named_parameters()}


def measure(ours: Any, theirs: Any) -> float:
    """Return the largest difference of a weight, over all ranks."""
    first, second = read_weights(ours), read_weights(theirs)
    most = torch.tensor(max((first[n] - second[n]).abs().max().item() for n in first))
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most.item()


def accelerate_state(call: str, folder: Path, **options: Any) -> float:
    """accelerate's ``save_state`` and ``load_state`` under data parallelism."""
    from accelerate import Accelerator

    def prepare() -> Any:
        accelerator, model = Accelerator(cpu=True), build_model()
        return accelerator, model, *accelerator.prepare(model, build_optimizer(model, call, lr=LR, **options))

    accelerator, model, prepared, optimizer = prepare()
    train(prepared, optimizer, range(HALF))
    accelerator.save_state(str(folder))
    train(prepared, optimizer, range(HALF, 2 * HALF))
    accelerator, again, prepared, optimizer = prepare()
    accelerator.load_state(str(folder))
    train(prepared, optimizer, range(HALF, 2 * HALF))
    return measure(model, again)


def trainer(call: str, folder: Path, *, deepspeed: Any = None, experts: bool = False, **options: Any) -> float:
    """Hugging Face's Trainer, with a checkpoint every three steps, of which the first is resumed."""
    from accelerate import DistributedType, PartialState

    if deepspeed:  # accelerate would take a machine without a GPU for one process
        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)

    def make(name: str) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(folder / name),
            max_steps=2 * HALF,
            save_steps=HALF,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            warmup_steps=1,
            learning_rate=LR,
            report_to=[],
            use_cpu=deepspeed is None,
            ddp_backend="gloo",
            deepspeed=deepspeed,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        model = build_model(experts=experts)
        tokens = torch.randint(40, (64, 8), generator=torch.Generator().manual_seed(0))
        rows = [{"input_ids": row, "labels": row} for row in tokens]
        optimizer = build_optimizer(model, call, lr=LR, **options)
        return Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, None))

    through = make("through")
    through.train()
    again = make("again")
    again.train(resume_from_checkpoint=str(folder / "through" / f"checkpoint-{HALF}"))
    if (deepspeed or {}).get("zero_optimization", {}).get("stage") == 3:
        import deepspeed as engine

        parameters = [*through.model.parameters(), *again.model.parameters()]
        with engine.zero.GatheredParameters(parameters):
            return measure(through.model, again.model)
    return measure(through.model, again.model)


def shard(model: Any, replicas: int = 0) -> Any:
    """Shard a model by rows; with ``replicas``, that many times, each over its share of the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = None
    if replicas:
        sides = (replicas, dist.get_world_size() // replicas)
        mesh = init_device_mesh("cpu", sides, mesh_dim_names=("replicate", "shard"))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def torch_checkpoint(
    call: str,
    folder: Path,
    *,
    sharded: bool = True,
    replicas: int = 0,
    experts: bool = False,
    flags: Any = None,
    **options: Any,
) -> float:
    """torch.distributed.checkpoint, on FSDP2 or on replicas, with ``StateDictOptions`` as asked."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    def prepare(seed: int) -> Any:
        model = build_model(seed, experts=experts)
        model = shard(model, replicas) if sharded else model
        return model, build_optimizer(model, call, lr=LR, **options)

    asked = StateDictOptions(**(flags or {}))
    model, optimizer = prepare(0)
    train_replicas = train if sharded else train_averaged
    train_replicas(model, optimizer, range(HALF))
    weights, state = get_state_dict(model, optimizer, options=asked)
    if asked.full_state_dict:
        if dist.get_rank() == 0:
            torch.save((weights, state), folder / "full.pt")
        dist.barrier()
        is_mine = dist.get_rank() == 0 or not asked.broadcast_from_rank0
        weights, state = torch.load(folder / "full.pt", weights_only=True) if is_mine else ({}, {})
    else:
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "dcp")
    train_replicas(model, optimizer, range(HALF, 2 * HALF))
    again, second = prepare(1)
    if not asked.full_state_dict:
        weights, state = get_state_dict(again, second, options=asked)
        content = {"model": weights, "optimizer": state}
        dcp.load(content, checkpoint_id=folder / "dcp")
        weights, state = content["model"], content["optimizer"]
    set_model_state_dict(again, weights, options=asked)
    set_optimizer_state_dict(again, second, state, options=asked)
    train_replicas(again, second, range(HALF, 2 * HALF))
    replica = build_model(experts=experts)
    train_averaged(replica, build_optimizer(replica, call, lr=LR), range(2 * HALF))
    if (off := measure(model, replica)) > 1e-3 * LR * HALF:
        raise AssertionError(f"{off} off the weights of replicas")
    return measure(model, again)


def torch_checkpoint_elsewhere(call: str, folder: Path, *, where: str, save: bool) -> float:
    """Save with as many ranks as there are, or go on from what other ranks have saved; against replicas throughout."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_model_state_dict, set_optimizer_state_dict

    model = shard(build_model(0 if save else 1))
    optimizer = build_optimizer(model, call, lr=LR)
    if save:
        train(model, optimizer, range(HALF))
    weights, state = get_state_dict(model, optimizer)
    content = {"model": weights, "optimizer": state}
    if save:
        dcp.save(content, checkpoint_id=where)
    else:
        dcp.load(content, checkpoint_id=where)
        set_model_state_dict(model, content["model"])
        set_optimizer_state_dict(model, optimizer, content["optimizer"])
        train(model, optimizer, range(HALF, 2 * HALF))
    replica = build_model()
    train_averaged(replica, build_optimizer(replica, call, lr=LR), range(HALF if save else 2 * HALF))
    return measure(model, replica)


def train_averaged(model: Any, optimizer: Any, steps: range) -> None:
    """Train replicas whose gradients are averaged by hand."""
    for step in steps:
        tokens = draw_tokens(step)
        model(input_ids=tokens, labels=tokens).loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        optimizer.step()
        optimizer.zero_grad()


def accelerate_fsdp(call: str, folder: Path, *, kind: str, **options: Any) -> float:
    """The functions of accelerate that Trainer calls under FSDP2, with ``kind`` of ``StateDictType``."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import load_fsdp_optimizer, save_fsdp_optimizer
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind, cpu_ram_efficient_loading=False)
    accelerator = Accelerator(cpu=True)

    def prepare(seed: int) -> Any:
        model = shard(build_model(seed))
        return model, accelerator.prepare_optimizer(build_optimizer(model, call, lr=LR, **options))

    model, optimizer = prepare(0)
    train(model, optimizer, range(HALF))
    weights = {name: weight.clone() for name, weight in get_model_state_dict(model).items()}
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(folder))
    train(model, optimizer, range(HALF, 2 * HALF))
    again, second = prepare(1)
    set_model_state_dict(again, weights)
    load_fsdp_optimizer(plugin, accelerator, second, again, str(folder))
    train(again, second, range(HALF, 2 * HALF))
    return measure(model, again)


def deepspeed_checkpoint(call: str, folder: Path, *, config: dict[str, Any], **options: Any) -> float:
    """DeepSpeed's ``save_checkpoint`` and ``load_checkpoint``."""
    import deepspeed

    def prepare(seed: int) -> Any:
        model = build_model(seed)
        optimizer = build_optimizer(model, call, lr=LR, **options)
        return deepspeed.initialize(model=model, optimizer=optimizer, config=dict(config))[0]

    def run(engine: Any, steps: range) -> None:
        for step in steps:
            tokens = draw_tokens(step)
            engine.backward(engine(input_ids=tokens, labels=tokens).loss)
            engine.step()

    engine = prepare(0)
    run(engine, range(HALF))
    engine.save_checkpoint(str(folder))
    run(engine, range(HALF, 2 * HALF))
    again = prepare(1)
    again.load_checkpoint(str(folder))
    run(again, range(HALF, 2 * HALF))
    parameters = [*engine.module.parameters(), *again.module.parameters()]
    with deepspeed.zero.GatheredParameters(parameters, enabled=config["zero_optimization"]["stage"] == 3):
        return measure(engine.module, again.module)


ROUTES = (
    accelerate_state,
    trainer,
    torch_checkpoint,
    torch_checkpoint_elsewhere,
    accelerate_fsdp,
    deepspeed_checkpoint,
)


def main() -> None:
    request = json.loads(sys.argv[1])
    if request.get("deepspeed"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    else:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    routes = {route.__name__: route for route in ROUTES}
    for number, (name, arguments) in enumerate(request["routes"]):
        folder = Path(request["folder"]) / str(number)
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        dist.barrier()
        try:
            apart = routes[name](folder=folder, **arguments)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            print("RESULT " + json.dumps({"route": name, "rank": dist.get_rank(), "error": text}), flush=True)
            raise  # torchrun ends the other ranks
        if dist.get_rank() == 0:
            print("RESULT " + json.dumps({"route": name, "apart": apart}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
