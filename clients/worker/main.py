"""The worker's process holds the site's lock, serves gRPC, and keeps the ranks up; it does not import torch.

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
from clients.runtime.paths import lock_path, log_dir, make_state_dir, session_dir, socket_path
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
HELP = """The worker's process: lease, service, and ranks that are kept up. It does not import torch.

    python -m clients.worker.main --site site.toml [--owner PID] [--state-dir DIR] [--quiet]

``--owner`` names the process that the worker belongs to; the worker ends when it does.
"""
MAX_RESTARTS = 3  # starts afresh in a row, each of which ended within PATIENCE, before the worker gives up
PATIENCE = 60.0  # seconds after which a group of ranks counts as started
POLL = 0.2  # seconds between looks at the ranks
OWNER_POLL = 2.0  # seconds between looks at the owner


@contextmanager
def lease(state_dir: Path) -> Iterator[None]:
    """Hold the site's state directory during the block; the lock goes with the process, however it ends.

    Raises:
        LockedError: another worker holds it.
    """
    make_state_dir(state_dir)
    with hold(lock_path(state_dir), f"site.state_dir: {state_dir}: is held by the worker with pid"):
        yield


def main(argv: list[str] | None = None) -> int:
    """Run the worker until it is told to end; return the exit code, 2 for settings that are wrong."""
    parser = argparse.ArgumentParser(prog="fedcompress worker", description=HELP)
    parser.add_argument("--site", type=Path, required=True, help="path of site.toml")
    parser.add_argument("--owner", type=int, default=0, help="end when this process ends (0: never)")
    parser.add_argument("--state-dir", type=Path, help="instead of site.toml's")
    parser.add_argument(
        "--local", action="store_true", help="tasks are made on this machine: no coordinator signs them"
    )
    parser.add_argument("--quiet", action="store_true", help="print warnings only; the log file has everything")
    args = parser.parse_args(argv)
    try:
        site = SiteConfig.load(args.site)
        if args.state_dir is not None:
            site = replace(site, state_dir=args.state_dir.resolve())
        if args.local:
            site = replace(site, identity=replace(site.identity, coordinator=None))
        with lease(site.state_dir):
            set_up(log_dir(site.state_dir), site.name, quiet=args.quiet)
            return _serve(site, args.site.resolve(), args.owner)
    except FedCompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | LockedError) else 1


def _serve(site: SiteConfig, site_file: Path, owner: int) -> int:
    """Serve the socket and keep the ranks up until this process is told to end; return the exit code."""
    import grpc

    stop = stop_on_signal()
    keep_until_trimmed()
    site_state = SiteState(session_dir(site.state_dir))
    counters = Counters(session_dir(site.state_dir))
    rank_group = RankGroup(site.engine.world, local=site.engine.ranks)
    # each rank holds a thread by its stream, and another while it reports; the rest is for callers
    server = grpc.server(ThreadPoolExecutor(max_workers=2 * site.engine.ranks + 8))
    worker_pb2_grpc.add_RanksServicer_to_server(rank_group, server)
    worker_pb2_grpc.add_WorkerServicer_to_server(WorkerService(site, site_state, rank_group, counters), server)
    address = socket_path(site.state_dir)
    address.unlink(missing_ok=True)
    old_mask = os.umask(0o077)  # the socket is for this user alone
    try:
        server.add_insecure_port(f"unix:{address}")
    finally:
        os.umask(old_mask)
    server.start()
    nodes = NodeRegistry(site, rank_group) if site.engine.nodes > 1 else None
    node_server = serve_nodes(site, rank_group, nodes) if nodes is not None else None
    LOG.info("site %s: listening on %s", site.name, address)
    if owner:
        threading.Thread(target=_watch_owner, args=(owner,), daemon=True).start()
    logs = log_dir(site.state_dir)
    launcher = Launcher(rank_environment(site, site_file, f"unix:{address}"), logs, site.engine.ranks)
    try:
        keep_ranks(launcher, rank_group, stop, nodes)
    except TrainingError as error:
        LOG.error("%s", error)
        return 1
    finally:
        if node_server is not None:
            node_server.stop(grace=0.5).wait()
        server.stop(grace=0.5).wait()
        site_state.close()
        counters.close()
        address.unlink(missing_ok=True)
    return 0


def stop_on_signal() -> threading.Event:
    """Return an event that is set when this process is told to end, by SIGTERM or SIGINT."""
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


def _wait_for_work(rank_group: RankGroup, stop: threading.Event) -> bool:
    """Wait while the ranks rest; return False if this process is to end."""
    while rank_group.is_resting.is_set():
        if stop.wait(POLL):
            return False
    return not stop.is_set()


def keep_ranks(
    launcher: Launcher,
    rank_group: RankGroup,
    stop: threading.Event,
    nodes: NodeRegistry | None = None,
    *,
    patience: float = PATIENCE,
) -> None:
    """Keep the ranks up until ``stop`` is set; if one dies, on whatever node, all are started afresh.

    Args:
        launcher: starts the ranks of this machine.
        rank_group: hands out the number of each new group.
        stop: ends the ranks, and this function, when it is set.
        nodes: the further nodes of the site; None where there are none.
        patience: seconds; a group that has lived longer is not counted among the failed starts.

    Raises:
        TrainingError: ``ranks-failed``: they died more than ``MAX_RESTARTS`` times in a row, each time within
            ``patience`` seconds of their start.
    """
    deaths = 0
    try:
        while not stop.is_set():
            if nodes is not None and not nodes.wait_for_nodes(stop):
                return
            group = rank_group.begin()
            if not _wait_for_work(rank_group, stop):
                return
            if nodes is not None:
                nodes.announce(group, rank_group.ranks)
            launcher.start(group, rank_group.ranks)
            started = time.monotonic()
            while not (death := launcher.find_dead_rank() or (nodes.find_loss() if nodes is not None else "")):
                if stop.wait(POLL):
                    return
                if rank_group.is_resting.is_set():
                    break
            launcher.stop()
            if not death:
                LOG.info("the run has ended: ranks rest until there is work")
                continue
            if rank_group.absent:  # a machine is gone, which says nothing about the ranks
                LOG.warning("%s", rank_group.absent)
                continue
            deaths = deaths + 1 if time.monotonic() - started < patience else 1
            if deaths > MAX_RESTARTS:
                raise TrainingError("ranks-failed", f"ranks died {deaths} times: {death}: see {launcher.folder}")
            LOG.warning("%s: all ranks start afresh", death)
    finally:
        launcher.stop()


if __name__ == "__main__":
    raise SystemExit(main())
