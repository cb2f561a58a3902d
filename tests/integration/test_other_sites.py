"""A registered site that asks a real SuperLink for what is meant for another one."""

from __future__ import annotations

import datetime
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ssl import create_default_context
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, node_pb2

from fedcompress.demo.federation import Federation
from fedcompress.identity.certs import CertOptions, make_certs

KIND = "application/protobuf"


@dataclass
class Node:
    """What speaks to the SuperLink with a node's key, as a SuperNode does, but says what it likes."""

    link: httpx.Client
    key: ec.EllipticCurvePrivateKey
    id: int = 0

    @property
    def public(self) -> bytes:
        """The public key as the SuperLink reads it."""
        kind = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.key.public_key().public_bytes(serialization.Encoding.PEM, kind)

    def call(self, path: str, request: Any, response: Any = None) -> Any:
        """The SuperLink's answer to a request that this node has signed; its status where no kind of answer is said."""
        now = datetime.datetime.now(datetime.UTC).isoformat()
        signature = self.key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
        headers = {"flwr-public-key": b64encode(self.public).decode(), "flwr-timestamp": now}
        headers |= {"flwr-signature": b64encode(signature).decode(), "content-type": KIND, "accept": KIND}
        found = self.link.post(f"/v1/fleet/{path}", content=request.SerializeToString(), headers=headers)
        return response.FromString(found.raise_for_status().content) if response else found.status_code

    def activate(self) -> None:
        """Be known by an id."""
        request = fleet_pb2.ActivateNodeRequest(public_key=self.public, heartbeat_interval=30)
        self.id = self.call("activate-node", request, fleet_pb2.ActivateNodeResponse).node_id


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """North and south, both known to a SuperLink with TLS."""
    folder = tmp_path_factory.mktemp("superlink")
    certs = folder / "certs"
    make_certs(CertOptions(hosts=("127.0.0.1",), nodes=("north", "south")), certs)
    trusted = create_default_context(cafile=str(certs / "ca.crt"))
    with Federation(folder, {}, certs=certs) as federation:
        federation.start()
        found = []
        with httpx.Client(base_url=f"https://127.0.0.1:{federation.port}", verify=trusted, timeout=20) as link:
            for name in ("north", "south"):
                federation.register_node(name)
                key = serialization.load_ssh_private_key((certs / f"{name}.node.key").read_bytes(), None)
                assert isinstance(key, ec.EllipticCurvePrivateKey)
                found.append(Node(link, key))
                found[-1].activate()
            yield found[0], found[1]


REQUESTS: dict[str, Callable[[Any], Any]] = {
    "pull-messages": lambda node: fleet_pb2.PullMessagesRequest(node=node),
    "pull-object": lambda node: message_pb2.PullObjectRequest(node=node, run_id=1, object_id="0" * 64),
    "push-object": lambda node: message_pb2.PushObjectRequest(node=node, run_id=1, object_id="0" * 64),
    "push-messages": lambda node: fleet_pb2.PushMessagesRequest(node=node),
    "confirm-message-received": lambda node: message_pb2.ConfirmMessageReceivedRequest(node=node, run_id=1),
    "send-node-heartbeat": lambda node: heartbeat_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
}


@pytest.mark.parametrize("path", REQUESTS)
def test_nothing_is_asked_or_said_in_the_name_of_another(nodes: tuple[Node, Node], path: str) -> None:
    """The SuperLink goes by the key that signed, not by the id in the request."""
    north, south = nodes
    assert north.id
    assert north.id != south.id
    assert north.call(path, REQUESTS[path](node_pb2.Node(node_id=south.id))) == 401


def test_in_its_own_name_a_node_is_served(nodes: tuple[Node, Node]) -> None:
    """Else the requests above would be refused for another reason."""
    for node in nodes:
        itself = node_pb2.Node(node_id=node.id)
        found = node.call("pull-messages", REQUESTS["pull-messages"](itself), fleet_pb2.PullMessagesResponse)
        assert list(found.messages_list) == []
        alive = REQUESTS["send-node-heartbeat"](itself)
        assert node.call("send-node-heartbeat", alive, heartbeat_pb2.SendNodeHeartbeatResponse).success
