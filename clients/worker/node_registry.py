"""On node 0 of a site with several machines, the registry knows which further nodes have joined.

Each further node runs ``clients.worker.node_agent``, which calls ``Join`` and is told on the stream that this returns
which group of ranks to start. The ranks there attend the same rank group as those of node 0. Both services are served
on the TCP address ``engine.rendezvous``; every call must carry the secret of ``engine.token``.

A node that leaves, or that reports by ``Lost`` that one of its ranks has died, ends the present group: the ranks of all
nodes start afresh, as soon as all nodes are there.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clients.runtime.node_token import guard, read_token
from clients.site import SiteConfig, format_address, parse_address
from clients.worker.rank_group import RankGroup
from fedcompress import __version__
from fedcompress.errors import ConfigError
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc

LOG = logging.getLogger("fedcompress.worker")
POLL = 1.0  # seconds between looks at whether a node's call is still open
STOP_POLL = 0.2  # seconds between looks at whether the worker is to end
Command = worker_pb2.NodeCommand
# a machine that lost power sends nothing: whoever is silent for so long is gone
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class NodeRegistry(worker_pb2_grpc.NodesServicer):
    """Knows the further nodes of a site, and tells them which group of ranks to start."""

    def __init__(self, site: SiteConfig, rank_group: RankGroup) -> None:
        """Start with all further nodes absent, which ``rank_group.absent`` is told."""
        self._site = site
        self._rank_group = rank_group
        self._changed = threading.Condition()  # guards all that follows; notified when a node joins
        self._joined: dict[int, queue.Queue[Command]] = {}  # node -> its commands
        self._loss = ""  # why the group cannot go on, as a node has reported it
        self._group = 0  # number of the group that was announced last
        self._update_absent()

    def Join(self, request: worker_pb2.NodeHello, context: Any) -> Iterator[Command]:
        """Yield the groups to start to one node, for as long as both live.

        The call is aborted for a node that does not fit this site, or whose number has joined already.
        """
        import grpc

        mismatch = self._find_mismatch(request)
        if mismatch:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, mismatch)
        commands: queue.Queue[Command] = queue.Queue()
        with self._changed:
            has_joined = request.node in self._joined
            if not has_joined:
                self._joined[request.node] = commands
                self._update_absent()
                self._changed.notify_all()
        if has_joined:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"node {request.node}: has joined already")
        LOG.info("node %d has joined from %s", request.node, context.peer())
        if not context.add_callback(lambda: self._leave(request.node)):
            self._leave(request.node)
        while context.is_active():
            try:
                yield commands.get(timeout=POLL)
            except queue.Empty:
                continue

    def _find_mismatch(self, hello: worker_pb2.NodeHello) -> str:
        """Return in what a node does not fit node 0; empty if it fits."""
        engine = self._site.engine
        if hello.name != self._site.name:
            return f"site.name: {hello.name!r}: node 0 has {self._site.name!r}"
        if hello.version != __version__:
            return f"fedcompress: {hello.version}: node 0 has {__version__}"
        if not 1 <= hello.node < engine.nodes:
            return f"--node-rank: {hello.node}: must be from 1 to {engine.nodes - 1}, as node 0 has engine.nodes"
        if hello.ranks != engine.ranks:
            return f"engine.ranks: {hello.ranks}: node 0 has {engine.ranks}"
        return ""

    def Lost(self, request: worker_pb2.NodeLoss, context: Any) -> worker_pb2.NodeAck:
        """Record that a rank of a node has died; what is said of an older group is dropped."""
        with self._changed:
            if request.group == self._group:
                self._loss = self._loss or f"node {request.node}: {request.message[:200]}"
        return worker_pb2.NodeAck()

    def _leave(self, node: int) -> None:
        with self._changed:
            self._joined.pop(node, None)
            self._update_absent()
        LOG.warning("node %d has left", node)

    def _update_absent(self) -> None:
        """Tell the rank group which nodes have not joined, for its messages."""
        absent = sorted(set(range(1, self._site.engine.nodes)) - self._joined.keys())
        names = ", ".join(f"node {n}" for n in absent)
        self._rank_group.absent = f"{names} has not joined: fedcompress site node --node-rank" if absent else ""

    def wait_for_nodes(self, stop: threading.Event) -> bool:
        """Wait until all nodes have joined; return False if ``stop`` was set before."""
        with self._changed:
            while self._rank_group.absent:
                if stop.is_set():
                    return False
                self._changed.wait(timeout=STOP_POLL)
        return not stop.is_set()

    def announce(self, group: int, world: int) -> None:
        """Tell all nodes to start their ranks of group ``group``, which has ``world`` ranks on all nodes."""
        with self._changed:
            self._loss = ""
            self._group = group
            for commands in self._joined.values():
                commands.put(Command(group=group, world=world))

    def find_loss(self) -> str:
        """Return why the group cannot go on; empty while it can."""
        with self._changed:
            return self._loss or self._rank_group.absent


def serve_nodes(site: SiteConfig, rank_group: RankGroup, nodes: NodeRegistry) -> Any:
    """Listen for further nodes and their ranks, on the rendezvous alone.

    Args:
        site: has several nodes.
        rank_group: the service that the ranks call.
        nodes: the service that the nodes call.

    Returns:
        The started ``grpc.Server``.

    Raises:
        ConfigError: the address is not of this machine or in use, or the token is not fit.
    """
    import grpc

    host, port = parse_address(site.engine.rendezvous)
    token = read_token(Path(site.engine.token), make=True)
    threads = site.engine.world + 2 * site.engine.nodes + 8  # each rank and each node holds one by its stream
    options = (*KEEPALIVE, ("grpc.so_reuseport", 0))
    server = grpc.server(ThreadPoolExecutor(max_workers=threads), interceptors=[guard(token)], options=options)
    worker_pb2_grpc.add_RanksServicer_to_server(rank_group, server)
    worker_pb2_grpc.add_NodesServicer_to_server(nodes, server)
    try:
        server.add_insecure_port(format_address(host, port))
    except RuntimeError as error:
        rule = "must be an address of this machine that is free"
        raise ConfigError("engine.rendezvous", site.engine.rendezvous, rule) from error
    server.start()
    return server
