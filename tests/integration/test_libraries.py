"""Saving and resuming by what people use: Trainer, accelerate, DeepSpeed, torch's checkpoints. With two ranks, or four.

A run that is resumed in the middle ends with the weights of the run that was not stopped, to the last bit, or a rank
refuses the state with the remedy.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RANKS = Path(__file__).with_name("library_ranks.py")
GALORE = "galore(rank=4,update_gap=2)"  # each matrix on one rank
FRUGAL = "frugal(update_gap=2,state=8bit)"  # on every shard


def run(
    folder: Path, routes: list[tuple[str, dict]], *, deepspeed: bool = False, timeout: int = 150, world: int = 2
) -> list[dict]:
    """What the ranks print for each route."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    asked = json.dumps({"routes": routes, "folder": str(folder), "deepspeed": deepspeed})
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", f"--master-port={port}"]
    root = str(RANKS.parents[2])
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        [*command, str(RANKS), asked], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(found) >= len(routes), done.stderr[-3000:]
    return found


def check(folder: Path, routes: list[tuple[str, dict]], **settings: Any) -> None:
    for (name, arguments), found in zip(routes, run(folder, routes, **settings), strict=True):
        assert found.get("apart") == 0, f"{name} {arguments}: {found}"


def test_accelerate_and_torch_go_on_where_they_stopped(tmp_path: Path) -> None:
    routes = [
        ("accelerate_state", {"call": GALORE, "replicate": True}),
        ("torch_checkpoint", {"call": GALORE}),
        ("accelerate_fsdp", {"call": FRUGAL, "kind": "SHARDED_STATE_DICT"}),
    ]
    check(tmp_path, routes)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("call", [GALORE, FRUGAL, "lisa(layers=1,update_gap=2)", "ldadam(rank=4)"])
def test_torch_checkpoints_of_every_kind(call: str, tmp_path: Path) -> None:
    whole = {"full_state_dict": True, "cpu_offload": True}
    routes = [
        ("torch_checkpoint", {"call": call, "sharded": False}),
        ("torch_checkpoint", {"call": call, "flags": {"cpu_offload": True}}),
        ("torch_checkpoint", {"call": call, "flags": whole}),
        ("torch_checkpoint", {"call": call, "flags": {**whole, "broadcast_from_rank0": True}}),
        ("torch_checkpoint", {"call": call, "experts": True}),
        ("accelerate_fsdp", {"call": call, "kind": "SHARDED_STATE_DICT"}),
        ("accelerate_fsdp", {"call": call, "kind": "FULL_STATE_DICT"}),
        ("accelerate_state", {"call": call, "replicate": True}),
    ]
    check(tmp_path, routes, timeout=350)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_replicas_of_shards(tmp_path: Path) -> None:
    """FSDP2 over a mesh of two dimensions: two replicas of what two ranks share, and one rank a replica."""
    for world in (4, 2):
        calls = [GALORE, FRUGAL, "adamw8bit"]
        routes = [("torch_checkpoint", {"call": call, "replicas": 2, "experts": call == GALORE}) for call in calls]
        check(tmp_path / str(world), routes, world=world)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_torch_checkpoints_on_other_numbers_of_ranks(tmp_path: Path) -> None:
    """Saved by four, loaded by two and by one; sums of gradients round in other ways, hence a tolerance."""
    calls = [GALORE, FRUGAL.replace("8bit", "fp32"), "adamw"]
    for world in (4, 2, 1):
        routes = []
        for number, call in enumerate(calls):
            where = str(tmp_path / f"checkpoint-{number}")
            routes.append(("torch_checkpoint_elsewhere", {"call": call, "where": where, "save": world == 4}))
        for route, found in zip(routes, run(tmp_path / str(world), routes, world=world), strict=True):
            assert 0 <= found.get("apart", -1) < 1e-4, f"{world} ranks: {route}: {found}"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_trainer_under_data_parallelism(tmp_path: Path) -> None:
    routes = [
        ("trainer", {"call": GALORE, "replicate": True}),
        ("trainer", {"call": "fira(rank=4,update_gap=2)", "replicate": True}),
        ("trainer", {"call": "adamp", "replicate": True}),
        ("trainer", {"call": FRUGAL}),
    ]
    check(tmp_path, routes, timeout=350)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("route", ["trainer", "accelerate_state"])
def test_the_state_of_one_rank_is_refused_with_the_remedy(route: str, tmp_path: Path) -> None:
    """These libraries save one rank's state: without ``replicate`` it lacks what the other one steps."""
    said = [found.get("error", "") for found in run(tmp_path, [(route, {"call": GALORE})])]
    assert any("StateError" in text and "build with replicate=True" in text for text in said), said


def zero(stage: int, **options: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
        **options,
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("call", [GALORE, FRUGAL])
def test_checkpoints_of_deepspeed(call: str, tmp_path: Path) -> None:
    bf16 = {"bf16": {"enabled": True}}
    configs = [zero(0), zero(0, **bf16), zero(1), zero(2, **bf16), zero(3)]
    routes = [("deepspeed_checkpoint", {"call": call, "config": config, "replicate": True}) for config in configs]
    check(tmp_path, routes, deepspeed=True, timeout=350)


# The settings of the files that fine-tuning tools ship for their users: all sizes left to Trainer.
SHIPPED = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
}
BUCKETS = {
    "allgather_partitions": True,
    "allgather_bucket_size": 5e8,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 5e8,
    "contiguous_gradients": True,
    "round_robin_gradients": True,
}
PARTITIONS = {
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_trainer_with_files_that_people_copy(stage: int, experts: bool, tmp_path: Path) -> None:
    config = {**SHIPPED, "zero_optimization": {"stage": stage, **(PARTITIONS if stage == 3 else BUCKETS)}}
    routes = [
        ("trainer", {"call": call, "deepspeed": config, "experts": experts, "replicate": stage == 0})
        for call in (GALORE, FRUGAL)
    ]
    check(tmp_path, routes, deepspeed=True, timeout=350)
