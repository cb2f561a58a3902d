"""Ranks on several nodes must have files of a job, model and rows in common, which is seen to here.

Nothing is pickled: tensors of bytes whose sizes are known go through torch's collectives.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clients.training.job import Job
from clients.training.tasks import Example
from fedcompress.errors import ConfigError

FILES = ("adapter_config.json", "adapter_model.safetensors")  # of the published PEFT folder
DIGEST = 32  # bytes of a SHA-256


def broadcast_job(job: Job, folder: Path, *, rank: int, local_rank: int) -> Job:
    """Return the job with files that are on this node; what rank 0 has is sent to the first rank of every node.

    All ranks call this together.

    Args:
        job: as the worker on node 0 has sent it.
        folder: of this node's own, for the files.
        rank: number of this rank among all.
        local_rank: its number on its node.

    Returns:
        The job itself on node 0; elsewhere one that names the copies in ``folder``.
    """
    import torch

    device = _device()
    sources = [*(job.published / name for name in FILES), job.constants]
    targets = [folder / "published" / name for name in FILES] + [folder / "constants.safetensors"]
    for source, target in zip(sources, targets, strict=True):
        data = source.read_bytes() if rank == 0 and source is not None else b""
        size = torch.tensor([len(data)], dtype=torch.int64, device=device)
        torch.distributed.broadcast(size, 0)
        body = torch.empty(int(size), dtype=torch.uint8)
        if data:
            body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(body):
            body = body.to(device)
            torch.distributed.broadcast(body, 0)
        if rank and not local_rank:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(body.cpu().numpy().tobytes())
    torch.distributed.barrier()
    if rank == local_rank:  # node 0
        return job
    constants = targets[-1] if job.constants is not None else None
    return replace(job, published=folder / "published", constants=constants)


def digest_of_rows(examples: Sequence[Example]) -> bytes:
    """Return the SHA-256 of the tokens and labels of examples, in order."""
    digest = hashlib.sha256()
    for example in examples:
        for values in (example.tokens, example.labels):
            digest.update(np.asarray([len(values), *values], np.int64).tobytes())
    return digest.digest()


def check_equal(digests: Mapping[str, bytes], ranks_per_node: int) -> None:
    """Compare digests of what must be the same on all nodes; all ranks call this together.

    Args:
        digests: SHA-256 by the name that a message gives to what they are of; the same names on all ranks.
        ranks_per_node: tells the node of a rank.

    Raises:
        ConfigError: on every rank; names what differs, and the first node where it does.
    """
    import torch

    own = torch.frombuffer(bytearray(b"".join(digests.values())), dtype=torch.uint8).to(_device())
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, own)
    for rank, other in enumerate(gathered):
        for number, name in enumerate(digests):
            part = slice(number * DIGEST, (number + 1) * DIGEST)
            if not torch.equal(other[part], gathered[0][part]):
                raise ConfigError(name, f"node {rank // ranks_per_node}", "must be as on node 0")


def local_rank() -> int:
    """Return the number of this rank on its node; 0 where the environment does not tell it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _device() -> Any:
    """Return the device of this rank's tensors in a collective: its GPU with NCCL, else the CPU with gloo."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
