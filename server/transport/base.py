"""What the coordinator needs of the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from fedcompress.config.train_task import TrainTask


@dataclass(frozen=True)
class Incoming:
    """One reply: the site's flat status and its payload; ``error`` if Flower lost the node.

    ``protocol`` counts the bytes that Flower carried besides the payload; ``late`` is a reply that was given up.
    """

    node: int
    status: dict[str, Any]
    payload: bytes
    error: str = ""
    protocol: int = 0
    late: bool = False


class Transport(Protocol):
    """What the coordinator needs of Flower."""

    def nodes(self) -> list[int]:
        """Ids of the connected nodes."""
        ...

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> int | None:
        """Send a task with its downlink, and the signature of both.

        Returns:
            Bytes that it takes besides the payload; None if it was not taken, which is then told as a reply.
        """
        ...

    def receive(self, timeout: float) -> Iterable[Incoming]:
        """Replies that have come; waits at most ``timeout`` seconds for one."""
        ...

    def forget(self, nodes: Iterable[int]) -> None:
        """Give up what was sent to these and not answered; what they still answer is ``late``, if it comes."""
        ...
