"""Several nodes without ranks: who may join, who is missing, and when a group is over."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from clients.runtime.node_token import HEADER, read_token
from clients.site import Data, Engine, SiteConfig, parse_address
from clients.worker.launcher import interface_towards
from clients.worker.node_registry import NodeRegistry, serve_nodes
from clients.worker.rank_group import RankGroup
from fedcompress import __version__
from fedcompress.adapters.base_model import BaseModel
from fedcompress.errors import ConfigError, TrainingError
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc

HELLO = worker_pb2.NodeHello(node=1, ranks=1, version=__version__, name="north")


def changed(**fields: Any) -> worker_pb2.NodeHello:
    made = worker_pb2.NodeHello()
    made.CopyFrom(HELLO)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@dataclass
class Place:
    """Node 0's side, listening."""

    site: SiteConfig
    hub: RankGroup = field(init=False)
    nodes: NodeRegistry = field(init=False)
    server: Any = field(init=False)
    channel: Any = field(init=False)

    def __post_init__(self) -> None:
        self.hub = RankGroup(self.site.engine.world, local=1)
        self.nodes = NodeRegistry(self.site, self.hub)
        self.server = serve_nodes(self.site, self.hub, self.nodes)
        self.channel = grpc.insecure_channel(self.site.engine.rendezvous)
        self.stub = worker_pb2_grpc.NodesStub(self.channel)
        self.ranks = worker_pb2_grpc.RanksStub(self.channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ((HEADER, read_token(Path(self.site.engine.token))),)

    def close(self) -> None:
        self.channel.close()
        self.server.stop(0).wait()


def make_site(folder: Path) -> SiteConfig:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "rows.jsonl").write_text("{}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = Engine(nodes=2, rendezvous=f"127.0.0.1:{port}", token=str(folder / "node.token"))
    return SiteConfig(
        name="north",
        state_dir=folder / "state",
        model=BaseModel(path=folder / "model"),
        data=Data(train=str(folder / "rows.jsonl")),
        engine=engine,
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(make_site(tmp_path))
    yield made
    made.close()


def refusal(calling: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        calling()
    return caught.value.code().name, caught.value.details()


def test_a_rendezvous_is_host_and_port() -> None:
    assert parse_address("10.0.0.1:29500") == ("10.0.0.1", 29500)
    assert parse_address("[::1]:1") == ("::1", 1)
    for text in ("", "host", "host:", ":29500", "host:0", "host:65536", "host:x", "host:²"):
        with pytest.raises(ConfigError, match=r"engine\.rendezvous"):
            parse_address(text)
    with pytest.raises(ConfigError, match=r"engine\.rendezvous"):
        Engine(nodes=2)
    assert interface_towards("127.0.0.1") == "lo"
    with pytest.raises(ConfigError, match=r"engine\.rendezvous"):
        interface_towards("nowhere.invalid")


def test_calls_without_the_token_are_refused(place: Place) -> None:
    for metadata in ((), ((HEADER, "0" * 64),), ((HEADER, ""),)):
        for call in (
            lambda m=metadata: next(place.stub.Join(HELLO, metadata=m, timeout=20)),
            lambda m=metadata: place.stub.Lost(worker_pb2.NodeLoss(), metadata=m, timeout=20),
            lambda m=metadata: next(place.ranks.Attend(worker_pb2.RankHello(), metadata=m, timeout=20)),
            lambda m=metadata: place.ranks.Report(worker_pb2.RankReport(), metadata=m, timeout=20),
        ):
            assert refusal(call)[0] == "UNAUTHENTICATED"
    assert place.hub.absent.startswith("node 1 has not joined")


def test_the_relays_service_is_not_on_the_network(place: Place) -> None:
    stub = worker_pb2_grpc.WorkerStub(place.channel)
    call = lambda: stub.Status(worker_pb2.StatusRequest(), metadata=place.metadata, timeout=20)  # noqa: E731
    assert refusal(call)[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"name": "south"}, "site.name"),
        ({"version": "0.0.0"}, "fedcompress: 0.0.0"),
        ({"node": 0}, "--node-rank: 0"),
        ({"node": 2}, "--node-rank: 2"),
        ({"ranks": 2}, "engine.ranks: 2"),
    ],
    ids=str,
)
def test_a_node_that_does_not_fit_is_told_why(place: Place, fields: dict[str, Any], match: str) -> None:
    call = place.stub.Join(changed(**fields), metadata=place.metadata, timeout=20)
    code, details = refusal(lambda: next(call))
    assert (code, match in details) == ("FAILED_PRECONDITION", True), details


def test_a_group_lasts_as_long_as_its_nodes(place: Place) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        gathered = pool.submit(place.nodes.wait_for_nodes, stop)
        call = place.stub.Join(HELLO, metadata=place.metadata)
        assert gathered.result(timeout=20)
        assert place.nodes.find_loss() == ""
        twice = place.stub.Join(HELLO, metadata=place.metadata, timeout=20)
        assert refusal(lambda: next(twice))[0] == "ALREADY_EXISTS"
        assert place.nodes.find_loss() == "", "the one that is refused takes nothing with it"
        place.nodes.announce(7, 2)
        command = next(call)
        assert (command.group, command.world) == (7, 2)
        for group, told in ((6, ""), (7, "node 1: rank 1 ended")):
            loss = worker_pb2.NodeLoss(node=1, group=group, message="rank 1 ended")
            place.stub.Lost(loss, metadata=place.metadata, timeout=20)
            assert place.nodes.find_loss() == told
        place.nodes.announce(8, 2)
        assert (place.nodes.find_loss(), next(call).group) == ("", 8)
        call.cancel()
        again = pool.submit(place.nodes.wait_for_nodes, stop)
        stop.set()
        assert again.result(timeout=20) is False


def test_ranks_of_an_older_group_get_no_work(place: Place) -> None:
    first, second = place.hub.begin(), place.hub.begin()
    old = place.ranks.Attend(worker_pb2.RankHello(rank=0, group=first), metadata=place.metadata, timeout=20)
    assert list(old) == []
    meet = lambda: place.ranks.Meet(  # noqa: E731
        worker_pb2.MeetRequest(rank=1, group=first), metadata=place.metadata, timeout=20
    )
    assert refusal(meet)[0] == "FAILED_PRECONDITION"
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(
            place.ranks.Meet, worker_pb2.MeetRequest(rank=1, group=second), metadata=place.metadata, timeout=20
        )
        store = worker_pb2.MeetRequest(rank=0, group=second, host="127.0.0.1", port=5)
        place.ranks.Meet(store, metadata=place.metadata, timeout=20)
        assert waits.result(timeout=20).port == 5
    with pytest.raises(TrainingError, match=r"0 of 2 ranks after 0 s: node 1 has not joined"):
        next(place.hub.run("job", start_timeout=0.0))


def test_an_address_that_is_taken_is_an_error(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"engine\.rendezvous.*this machine that is free"):
        serve_nodes(place.site, place.hub, place.nodes)
