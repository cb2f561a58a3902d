"""The worker's process: lease, service, and ranks that are kept up. It does not import torch.

    python -m clients.worker.main --site site.toml [--owner PID] [--state-dir DIR] [--quiet]

``--owner`` names the process that the worker belongs to; the worker ends when it does.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from clients.runtime.logs import set_up
from clients.runtime.malloc import keep_until_trimmed
from clients.runtime.paths import lock_path, log_dir, make_state_dir, socket_path
from clients.site import SiteConfig
from clients.state.counters import Counters
from clients.state.site_state import SiteState
from clients.worker.launcher import Launcher, rank_environment
from clients.worker.node_registry import NodeRegistry, serve_nodes
from clients.worker.rank_group import RankGroup
from clients.worker.service import WorkerService
from fedcompress.errors import ConfigError, FedCompressError, LockedError, TrainingError
from fedcompress.proto.v1 import worker_pb2_grpc
from fedcompress.storage.locks import hold

LOG = logging.getLogger("fedcompress.worker")
MAX_RESTARTS = 3
PATIENCE = 60.0  # seconds after which a group of ranks counts as started
POLL = 0.2  # seconds between looks at the ranks
OWNER_POLL = 2.0  # seconds


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

    stop = stop_on_signal()
    keep_until_trimmed()
    session = SiteState(site.state_dir / "session")
    counters = Counters(site.state_dir / "session")
    hub = RankGroup(site.engine.world, local=site.engine.ranks)
    server = grpc.server(ThreadPoolExecutor(max_workers=2 * site.engine.ranks + 8))
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
    nodes = NodeRegistry(site, hub) if site.engine.nodes > 1 else None
    outer = serve_nodes(site, hub, nodes) if nodes is not None else None
    LOG.info("site %s: listening on %s", site.name, address)
    if owner:
        threading.Thread(target=_watch_owner, args=(owner,), daemon=True).start()
    logs = log_dir(site.state_dir)
    launcher = Launcher(rank_environment(site, site_file, f"unix:{address}"), logs, site.engine.ranks)
    try:
        keep_ranks(launcher, hub, stop, nodes)
    except TrainingError as error:
        LOG.error("%s", error)
        return 1
    finally:
        if outer is not None:
            outer.stop(grace=0.5).wait()
        server.stop(grace=0.5).wait()
        session.close()
        counters.close()
        address.unlink(missing_ok=True)
    return 0


def stop_on_signal() -> threading.Event:
    """Set when this process is told to end, by SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


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


def keep_ranks(
    launcher: Launcher,
    hub: RankGroup,
    stop: threading.Event,
    nodes: NodeRegistry | None = None,
    *,
    patience: float = PATIENCE,
) -> None:
    """Keep the ranks up until ``stop`` is set; if one dies, on whatever node, all are started afresh.

    Raises:
        TrainingError: they died too often, each time within ``patience`` seconds of their start.
    """
    deaths = 0
    try:
        while not stop.is_set():
            if nodes is not None and not nodes.wait_for_nodes(stop):
                return
            group = hub.begin()
            if nodes is not None:
                nodes.announce(group, hub.ranks)
            launcher.start(group, hub.ranks)
            started = time.monotonic()
            while not (how := launcher.find_dead_rank() or (nodes.find_loss() if nodes is not None else "")):
                if stop.wait(POLL):
                    return
            launcher.stop()
            if hub.absent:  # the machine, not the ranks
                LOG.warning("%s", hub.absent)
                continue
            deaths = deaths + 1 if time.monotonic() - started < patience else 1
            if deaths > MAX_RESTARTS:
                raise TrainingError("ranks-failed", f"ranks died {deaths} times: {how}: see {launcher.folder}")
            LOG.warning("%s: all ranks start afresh", how)
    finally:
        launcher.stop()


if __name__ == "__main__":
    raise SystemExit(main())
