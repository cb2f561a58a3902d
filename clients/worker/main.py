"""The worker's process: lease, service, ranks by torchrun's elastic API.

    python -m clients.worker.main --site site.toml [--owner PID] [--state-dir DIR] [--quiet]

``--owner`` names the process that the worker belongs to; the worker ends when it does.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.site import SiteConfig
from clients.worker.counters import Counters
from clients.worker.hub import RankHub
from clients.worker.logs import log_file, set_up
from clients.worker.paths import lock_path, log_dir, make_state_dir, socket_path
from clients.worker.service import WorkerService
from clients.worker.session import Session
from fedcompress.errors import ConfigError, FedCompressError, LockedError, TrainingError
from fedcompress.locks import hold
from fedcompress.proto.v1 import worker_pb2_grpc

LOG = logging.getLogger("fedcompress.worker")
MAX_RESTARTS = 3
OWNER_POLL = 2.0  # seconds
KEPT_STARTS = 8  # folders with what ranks of earlier workers printed


@contextmanager
def lease(state_dir: Path) -> Iterator[None]:
    """Hold the site's state directory; the lock goes with the process, however it ends.

    Raises:
        LockedError: another worker holds it.
    """
    make_state_dir(state_dir)
    with hold(lock_path(state_dir), f"site.state_dir: {state_dir}: is held by the worker with pid"):
        yield


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fedcompress worker", description=__doc__)
    parser.add_argument("--site", type=Path, required=True, help="path of site.toml")
    parser.add_argument("--owner", type=int, default=0, help="end when this process ends (0: never)")
    parser.add_argument("--state-dir", type=Path, help="instead of site.toml's")
    parser.add_argument("--quiet", action="store_true", help="print warnings only; the log file has everything")
    args = parser.parse_args(argv)
    try:
        site = SiteConfig.load(args.site)
        if args.state_dir is not None:
            site = replace(site, state_dir=args.state_dir.resolve())
        with lease(site.state_dir):
            set_up(log_dir(site.state_dir), site.name, quiet=args.quiet)
            return _serve(site, args.site.resolve(), args.owner)
    except FedCompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | LockedError) else 1


def _serve(site: SiteConfig, site_file: Path, owner: int) -> int:
    import grpc

    session = Session(site.state_dir / "session")
    counters = Counters(site.state_dir / "session")
    hub = RankHub(site.engine.ranks)
    server = grpc.server(ThreadPoolExecutor(max_workers=site.engine.ranks + 8))
    worker_pb2_grpc.add_RanksServicer_to_server(hub, server)
    worker_pb2_grpc.add_WorkerServicer_to_server(WorkerService(site, session, hub, counters), server)
    address = socket_path(site.state_dir)
    address.unlink(missing_ok=True)
    old_mask = os.umask(0o077)
    try:
        server.add_insecure_port(f"unix:{address}")
    finally:
        os.umask(old_mask)
    server.start()
    LOG.info("site %s: listening on %s", site.name, address)
    if owner:
        threading.Thread(target=_watch_owner, args=(owner,), daemon=True).start()
    try:
        _run_ranks(site, site_file, address)
    except TrainingError as error:
        LOG.error("%s", error)
        return 1
    finally:
        server.stop(grace=0.5).wait()
        session.close()
        counters.close()
        address.unlink(missing_ok=True)
    return 0


def _watch_owner(owner: int) -> None:
    """End this process when its owner is gone."""
    import psutil

    try:
        process = psutil.Process(owner)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(OWNER_POLL)
    except psutil.NoSuchProcess:
        pass
    LOG.info("owner %d has ended: so does this worker", owner)
    os.kill(os.getpid(), signal.SIGTERM)


def _run_ranks(site: SiteConfig, site_file: Path, address: Path) -> None:
    """Keep the ranks up until SIGTERM; a rank that dies takes its group down and is restarted."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ |= _rank_environment(site, site_file, address)
    logs = log_dir(site.state_dir)
    logs.mkdir(parents=True, exist_ok=True)
    _forget_old_starts(logs)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=site.engine.ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        rdzv_configs={"is_host": True},
        local_addr="127.0.0.1",
        max_restarts=MAX_RESTARTS,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
        shutdown_timeout=5,
    )
    try:
        elastic_launch(config, entrypoint=sys.executable)("-u", "-m", "clients.training.rank")
    except SignalException:
        LOG.info("stopped by signal")
    except ChildFailedError as error:
        raise TrainingError(
            "ranks-failed", f"ranks died {MAX_RESTARTS + 1} times: see {log_file(logs)}: {error}"
        ) from error


def _forget_old_starts(logs: Path) -> None:
    """Keep what the ranks of the last few workers printed."""
    found = sorted((f for f in logs.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
    for folder in found[: -KEPT_STARTS + 1]:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


def _rank_environment(site: SiteConfig, site_file: Path, address: Path) -> dict[str, str]:
    threads = str(site.engine.threads)
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env: dict[str, Any] = {
        "FEDCOMPRESS_SITE_TOML": str(site_file),
        "FEDCOMPRESS_STATE_DIR": str(site.state_dir),
        "FEDCOMPRESS_WORKER_SOCKET": str(address),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return {k: str(v) for k, v in env.items()}


if __name__ == "__main__":
    raise SystemExit(main())
