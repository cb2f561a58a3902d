"""A training rank is a process that attends its worker, runs jobs, and ends when the worker does.

The worker starts it as ``python -m clients.training.rank``, with all it needs to know in its environment (see
``clients.worker.launcher``). It first meets the other ranks of its group and makes a torch process group with them, and
then waits for jobs on a gRPC stream. A job that fails in a way that may leave the ranks in disagreement ends the
process; the worker then starts all ranks afresh.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from clients.runtime.logs import log_round, set_up
from clients.runtime.malloc import release_memory, return_large_blocks
from clients.runtime.node_token import HEADER, read_token
from clients.runtime.paths import log_dir
from clients.site import SiteConfig
from clients.training.job import OUT_OF_MEMORY, Job
from fedcompress.errors import FedCompressError, MismatchError, TrainingError, error_name
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc

LOG = logging.getLogger("fedcompress.rank")
PR_SET_PDEATHSIG = 1  # option of prctl(2): the signal that comes when the parent ends


def main() -> int:
    """Run the rank until its worker ends; return the exit code."""
    import grpc

    _end_with(int(os.environ["FEDCOMPRESS_PARENT"]))
    return_large_blocks()
    rank = int(os.environ["RANK"])
    group = int(os.environ["FEDCOMPRESS_GROUP"])
    site = SiteConfig.load(Path(os.environ["FEDCOMPRESS_SITE_TOML"]))
    site = replace(site, state_dir=Path(os.environ["FEDCOMPRESS_STATE_DIR"]))
    set_up(log_dir(site.state_dir), site.name, rank=rank)
    import peft  # noqa: F401  imported now, while Flower starts, instead of in the first round
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(site.engine.threads)
    from clients.training.engines import init_distributed
    from clients.training.trainer import Trainer

    address = os.environ["FEDCOMPRESS_HUB"]
    with grpc.insecure_channel(address) as channel:
        stub = _with_token(worker_pb2_grpc.RanksStub(channel), site, address)
        try:
            store = rendezvous(stub, rank, group, os.environ["FEDCOMPRESS_STORE_HOST"])
            rank, world = init_distributed(site.engine.collective_timeout, store)
            trainer = Trainer(site, rank, world)
            LOG.info("ready: pid %d, world %d", os.getpid(), world)
            for command in stub.Attend(worker_pb2.RankHello(rank=rank, pid=os.getpid(), group=group)):
                job = Job.from_json(command.job_json)
                with log_round(job.task.run, job.task.round):
                    _run(stub, trainer, rank, command, job)
                release_memory()
        except grpc.RpcError as error:
            LOG.info("the worker is gone: %s", error.code())
    return 0


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its worker ends, even inside a collective."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        raise SystemExit(1)


def _with_token(stub: Any, site: SiteConfig, address: str) -> Any:
    """Return the calls of the rank group; over TCP, from another node than the worker's, they carry the token."""
    if address.startswith("unix:"):
        return stub
    metadata = ((HEADER, read_token(Path(site.engine.token))),)
    calls = {name: partial(getattr(stub, name), metadata=metadata) for name in ("Attend", "Report", "Meet")}
    return SimpleNamespace(**calls)


def rendezvous(stub: Any, rank: int, group: int, host: str) -> Any:
    """Return the store by which the ranks of a group find each other.

    Rank 0 listens on ``host`` alone, where torch would listen on all interfaces.

    Args:
        stub: calls of the rank group, which tells the address of rank 0's store to the others.
        rank: number of this rank.
        group: number of the group.
        host: address that rank 0 listens on; the others need none.

    Returns:
        A ``torch.distributed.TCPStore``.
    """
    from torch.distributed import TCPStore

    world = int(os.environ["WORLD_SIZE"])
    if rank:
        address = stub.Meet(worker_pb2.MeetRequest(rank=rank, group=group))
        store = TCPStore(address.host, address.port, world, is_master=False)
    else:
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        # torch closes the listener itself
        store = TCPStore(host, port, world, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        address = stub.Meet(worker_pb2.MeetRequest(rank=rank, group=group, host=host, port=port))
    os.environ |= {"MASTER_ADDR": address.host, "MASTER_PORT": str(address.port)}  # accelerate looks for them
    return store


def _run(stub: Any, trainer: Any, rank: int, command: Any, job: Job) -> None:
    """Run one job; whatever goes wrong is reported, and after an unforeseen error the group starts afresh."""

    def report(**fields: Any) -> None:
        stub.Report(worker_pb2.RankReport(rank=rank, id=command.id, **fields))

    def progress(**fields: Any) -> None:
        if rank == 0:
            report(progress=worker_pb2.Progress(**fields))

    try:
        result = trainer.run(job, progress)
    except FedCompressError as error:
        code = error.code if isinstance(error, MismatchError | TrainingError) else error_name(error)
        LOG.error("job failed: %s", error)
        report(error=f"{code}: {error}")
    except Exception as error:
        LOG.exception("job failed")
        if _is_out_of_memory(error):
            report(error=f"{OUT_OF_MEMORY}: {error}")
            return
        report(error=f"rank-failed: {type(error).__name__}: {error}")
        raise  # ranks may now disagree: the worker restarts the group
    else:
        report(result_json=json.dumps(result))


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory is short: of a GPU, or of the host where it refuses."""
    import torch

    text = str(error).lower()
    is_refusal = isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or is_refusal


if __name__ == "__main__":
    raise SystemExit(main())
