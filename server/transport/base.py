"""The contract between the coordinator and the network: what it sends, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from fedcompress.config.train_task import TrainTask
from fedcompress.wire import digest_of


@dataclass(frozen=True)
class Incoming:
    """A reply that has come from a node.

    Attributes:
        node: id of the node.
        status: what the site says beside its payload; flat, and not verified by anybody.
        payload: packed envelope; empty if there is none.
        error: why Flower has lost the node or the message; empty if it has not.
        protocol: bytes that Flower carried besides the payload.
        late: whether the reply was given up before it came.
    """

    node: int
    status: dict[str, Any]
    payload: bytes
    error: str = ""
    protocol: int = 0
    late: bool = False

    @property
    def digest(self) -> str:
        """Return the digest that names the payload, hex; empty if there is no payload."""
        return digest_of(self.payload).hex() if self.payload else ""


class Transport(Protocol):
    """Carries messages to nodes and back: what the coordinator needs of Flower."""

    def nodes(self) -> list[int]:
        """Return the ids of the connected nodes."""
        ...

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> int | None:
        """Send a task with its downlink, and the signature of both.

        Args:
            node: id of the node.
            task: what its site is to do.
            payload: packed envelopes one after another.
            signature: of task and payload, hex; empty if the coordinator has no key.

        Returns:
            Bytes that the message takes besides the payload; None if the message was not taken, which then also comes
            as a reply with an ``error``.
        """
        ...

    def receive(self, timeout: float) -> Iterable[Incoming]:
        """Return the replies that have come, or wait at most ``timeout`` seconds for one."""
        ...

    def forget(self, nodes: Iterable[int]) -> None:
        """Give up what was sent to these nodes and not answered; a reply that still comes is ``late``."""
        ...
