"""The agent is the process of a further node of a site: it starts ranks there, which get their work from node 0.

    python -m clients.worker.node_agent --site site.toml --node-rank 1

It speaks to nobody but node 0, and waits for it for as long as it takes. When node 0 goes away, its ranks end and it
tries to join again; when one of its ranks dies, it tells node 0, and all nodes start theirs afresh.
"""

from __future__ import annotations

import argparse
import logging
import queue
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.runtime.logs import set_up
from clients.runtime.malloc import return_large_blocks
from clients.runtime.node_token import HEADER, read_token
from clients.runtime.paths import log_dir
from clients.site import SiteConfig, format_address, parse_address
from clients.worker.launcher import Launcher, rank_environment
from clients.worker.main import POLL, lease, stop_on_signal
from clients.worker.node_registry import KEEPALIVE
from fedcompress import __version__
from fedcompress.adapters import base_fingerprint
from fedcompress.errors import ConfigError, FedCompressError, LockedError, ProcessError
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc

LOG = logging.getLogger("fedcompress.worker")
HELP = """A further node of a site: runs ranks that get their work from node 0.

    python -m clients.worker.node_agent --site site.toml --node-rank 1

It speaks to nobody but node 0, and waits for it for as long as it takes.
"""
PATIENCE = 3.0  # seconds between attempts to reach node 0
LOSS_TIMEOUT = 10  # seconds that node 0 has to take the report of a loss
FATAL = ("UNAUTHENTICATED", "FAILED_PRECONDITION")  # gRPC codes after which trying again would not help


def main(argv: list[str] | None = None) -> int:
    """Run the agent until it is told to end; return the exit code, 2 for settings that are wrong."""
    parser = argparse.ArgumentParser(prog="fedcompress site node", description=HELP)
    parser.add_argument("--site", type=Path, required=True, help="path of site.toml")
    parser.add_argument("--node-rank", type=int, required=True, help="number of this node, from 1")
    args = parser.parse_args(argv)
    try:
        site = SiteConfig.load(args.site)
        if not 1 <= args.node_rank < site.engine.nodes:
            rule = f"must be from 1 to engine.nodes - 1, which is {site.engine.nodes - 1}"
            raise ConfigError("--node-rank", args.node_rank, rule)
        site = replace(site, state_dir=site.state_dir / f"node-{args.node_rank}")
        with lease(site.state_dir):
            set_up(log_dir(site.state_dir), site.name)
            return _attend(site, args.site.resolve(), args.node_rank)
    except FedCompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | LockedError) else 1


def _attend(site: SiteConfig, site_file: Path, node: int) -> int:
    """Join node 0, again and again, until this process is told to end."""
    import grpc

    stop = stop_on_signal()
    return_large_blocks()
    address = format_address(*parse_address(site.engine.rendezvous))
    metadata = ((HEADER, read_token(Path(site.engine.token))),)
    base_fingerprint(site.model.path, site.state_dir / "fingerprint.json")  # hashed once, cached for the ranks
    ranks = site.engine.ranks
    environment = rank_environment(site, site_file, address)
    launcher = Launcher(environment, log_dir(site.state_dir), ranks, first=node * ranks)
    hello = worker_pb2.NodeHello(node=node, ranks=ranks, version=__version__, name=site.name)
    try:
        while not stop.is_set():
            with grpc.insecure_channel(address, options=KEEPALIVE) as channel:
                stub = worker_pb2_grpc.NodesStub(channel)
                reason = _follow(stub, hello, metadata, launcher, stop)
            launcher.stop()
            LOG.info("node 0 is not there: %s", reason)
            stop.wait(PATIENCE)
    finally:
        launcher.stop()
    return 0


def _follow(stub: Any, hello: Any, metadata: Any, launcher: Launcher, stop: threading.Event) -> str:
    """Start the groups that node 0 asks for, for as long as it is there; return why it is not there any more.

    Raises:
        ProcessError: node 0 refuses this node.
    """
    import grpc

    call = stub.Join(hello, metadata=metadata, wait_for_ready=False)
    received: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(call, received), daemon=True).start()
    group = 0  # number of the group that runs here; 0: none
    try:
        while not stop.is_set():
            try:
                item = received.get(timeout=POLL)
            except queue.Empty:
                death = launcher.find_dead_rank()
                if death and group:
                    LOG.warning("%s: node 0 is told", death)
                    loss = worker_pb2.NodeLoss(node=hello.node, group=group, message=death)
                    group = 0
                    stub.Lost(loss, metadata=metadata, timeout=LOSS_TIMEOUT)
                continue
            if isinstance(item, str):
                return item
            if isinstance(item, grpc.RpcError):
                if item.code().name in FATAL:
                    raise ProcessError(f"node 0 refuses this node: {item.details()}")
                return f"{item.code().name}: {item.details()}"
            group = item.group
            LOG.info("group %d: %d ranks in all", group, item.world)
            launcher.start(group, item.world)
    except grpc.RpcError as error:  # of Lost
        return str(error.code().name)
    finally:
        call.cancel()
    return "stopped"


def _listen(call: Any, received: queue.Queue[Any]) -> None:
    """Put all commands of a stream into a queue, and then how it ended: the text "ended", or the error."""
    import grpc

    try:
        for command in call:
            received.put(command)
        received.put("ended")
    except grpc.RpcError as error:
        received.put(error)


if __name__ == "__main__":
    raise SystemExit(main())
