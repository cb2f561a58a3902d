"""Node 0's side of several nodes: who has joined, and which group of ranks all of them run."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clients.runtime.node_token import guard, read_token
from clients.site import SiteConfig, parse_address
from clients.worker.rank_group import RankGroup
from fedcompress import __version__
from fedcompress.errors import ConfigError
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc

LOG = logging.getLogger("fedcompress.worker")
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
    """The further nodes of a site."""

    def __init__(self, site: SiteConfig, hub: RankGroup) -> None:
        self._site, self._hub = site, hub
        self._changed = threading.Condition()
        self._joined: dict[int, queue.Queue[Command]] = {}
        self._lost = ""
        self._group = 0
        self._tell_absent()

    def Join(self, request: worker_pb2.NodeHello, context: Any) -> Iterator[Command]:
        """Stream of groups to start, to one node."""
        import grpc

        wrong = self._wrong(request)
        if wrong:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, wrong)
        commands: queue.Queue[Command] = queue.Queue()
        with self._changed:
            taken = request.node in self._joined
            if not taken:
                self._joined[request.node] = commands
                self._tell_absent()
                self._changed.notify_all()
        if taken:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"node {request.node}: has joined already")
        LOG.info("node %d has joined from %s", request.node, context.peer())
        if not context.add_callback(lambda: self._leave(request.node)):
            self._leave(request.node)
        while context.is_active():
            try:
                yield commands.get(timeout=1.0)
            except queue.Empty:
                continue

    def _wrong(self, hello: worker_pb2.NodeHello) -> str:
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
        """A rank of a node has died."""
        with self._changed:
            if request.group == self._group:
                self._lost = self._lost or f"node {request.node}: {request.message[:200]}"
        return worker_pb2.NodeAck()

    def _leave(self, node: int) -> None:
        with self._changed:
            self._joined.pop(node, None)
            self._tell_absent()
        LOG.warning("node %d has left", node)

    def _tell_absent(self) -> None:
        absent = sorted(set(range(1, self._site.engine.nodes)) - self._joined.keys())
        names = ", ".join(f"node {n}" for n in absent)
        self._hub.absent = f"{names} has not joined: fedcompress site node --node-rank" if absent else ""

    def wait_for_nodes(self, stop: threading.Event) -> bool:
        """Wait until all nodes have joined; False if ``stop`` was set before."""
        with self._changed:
            while self._hub.absent:
                if stop.is_set():
                    return False
                self._changed.wait(timeout=0.2)
        return not stop.is_set()

    def announce(self, group: int, world: int) -> None:
        """Tell all nodes to start their ranks of a group."""
        with self._changed:
            self._lost, self._group = "", group
            for commands in self._joined.values():
                commands.put(Command(group=group, world=world))

    def find_loss(self) -> str:
        """Why the group cannot go on; empty while it can."""
        with self._changed:
            return self._lost or self._hub.absent


def serve_nodes(site: SiteConfig, hub: RankGroup, nodes: NodeRegistry) -> Any:
    """Listen for further nodes and their ranks, on the rendezvous alone.

    Raises:
        ConfigError: the address is not of this machine or in use, or the token is not fit.
    """
    import grpc

    host, port = parse_address(site.engine.rendezvous)
    token = read_token(Path(site.engine.token), make=True)
    threads = site.engine.world + 2 * site.engine.nodes + 8
    options = (*KEEPALIVE, ("grpc.so_reuseport", 0))
    server = grpc.server(ThreadPoolExecutor(max_workers=threads), interceptors=[guard(token)], options=options)
    worker_pb2_grpc.add_RanksServicer_to_server(hub, server)
    worker_pb2_grpc.add_NodesServicer_to_server(nodes, server)
    try:
        server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        rule = "must be an address of this machine that is free"
        raise ConfigError("engine.rendezvous", site.engine.rendezvous, rule) from error
    server.start()
    return server
