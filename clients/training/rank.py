"""A training rank: attends its worker, runs jobs, ends when the worker does.

Started by torchrun's elastic API as ``python -m clients.training.rank``.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.site import SiteConfig
from clients.training.job import OUT_OF_MEMORY, Job
from clients.worker.logs import log_round, set_up
from clients.worker.paths import log_dir
from fedcompress.errors import FedCompressError, MismatchError, TrainingError
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc

LOG = logging.getLogger("fedcompress.rank")
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Entry point; returns the exit code."""
    import grpc

    if sys.platform == "linux":  # no rank outlives its worker, even inside a collective
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    rank = int(os.environ["RANK"])
    site = SiteConfig.load(Path(os.environ["FEDCOMPRESS_SITE_TOML"]))
    site = replace(site, state_dir=Path(os.environ["FEDCOMPRESS_STATE_DIR"]))
    set_up(log_dir(site.state_dir), site.name, rank=rank)
    import peft  # noqa: F401  imported now, while Flower starts, instead of in the first round
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(site.engine.threads)
    from clients.training.engines import init_distributed
    from clients.training.loop import Trainer

    rank, world = init_distributed(site.engine.collective_timeout)
    trainer = Trainer(site, rank, world)
    with grpc.insecure_channel(f"unix:{os.environ['FEDCOMPRESS_WORKER_SOCKET']}") as channel:
        stub = worker_pb2_grpc.RanksStub(channel)
        LOG.info("ready: pid %d, world %d", os.getpid(), world)
        try:
            for command in stub.Attend(worker_pb2.RankHello(rank=rank, pid=os.getpid())):
                job = Job.from_json(command.job_json)
                with log_round(job.task.run, job.task.round):
                    _run(stub, trainer, rank, command, job)
        except grpc.RpcError as error:
            LOG.info("the worker is gone: %s", error.code())
    return 0


def _run(stub: Any, trainer: Any, rank: int, command: Any, job: Job) -> None:
    """One job; whatever goes wrong is reported, and the group starts afresh."""

    def report(**fields: Any) -> None:
        stub.Report(worker_pb2.RankReport(rank=rank, id=command.id, **fields))

    def progress(**fields: Any) -> None:
        if rank == 0:
            report(progress=worker_pb2.Progress(**fields))

    try:
        result = trainer.run(job, progress)
    except FedCompressError as error:
        code = error.code if isinstance(error, MismatchError | TrainingError) else type(error).__name__
        LOG.error("job failed: %s", error)
        report(error=f"{code}: {error}")
    except Exception as error:
        LOG.exception("job failed")
        if _is_out_of_memory(error):
            report(error=f"{OUT_OF_MEMORY}: {error}")
            return
        report(error=f"rank-failed: {type(error).__name__}: {error}")
        raise  # ranks may now disagree: the elastic agent restarts the group
    else:
        report(result_json=json.dumps(result))


def _is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, or of the host where it refuses."""
    import torch

    text = str(error).lower()
    refused = isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or refused


if __name__ == "__main__":
    raise SystemExit(main())
