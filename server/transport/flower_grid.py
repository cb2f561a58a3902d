"""The coordinator reaches its sites over Flower's grid."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from fedcompress.config.train_task import TrainTask
from fedcompress.errors import FedCompressError
from fedcompress.flower import carried_bytes, from_records, to_records
from server.transport.base import Incoming
from server.transport.pulling import Puller, UnreadableReplies

LOG = logging.getLogger("flwr")


class GridTransport:
    """Carries messages over Flower's grid, by push and pull.

    Args:
        grid: Flower's, of the ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._open: dict[str, int] = {}  # message id -> node, of messages whose replies are awaited
        self._late: dict[str, int] = {}  # message id -> node, of messages that were given up
        self._unsent: list[Incoming] = []  # stand for the replies to messages that were not taken
        self._suspects: set[int] = set()  # nodes of whose replies one could not be read
        self._puller = Puller(grid.pull_messages)

    def nodes(self) -> list[int]:
        """Return the ids of the connected nodes."""
        return list(self._grid.get_node_ids())

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> int | None:
        """Push one message; see ``Transport.send``."""
        content = to_records({"task": task.to_json(), "signature": signature}, payload)
        message = Message(content, dst_node_id=node, message_type="train", group_id=str(task.round))
        try:
            message_id = next(iter(self._grid.push_messages([message])), "")
        except ObjectPushError:  # the SuperLink has begun anew with it, as when it did not answer in time
            message_id = ""
        if not message_id:  # or the node has just left, or the message is too large for the SuperLink
            self._unsent.append(Incoming(node, {}, b"", error="the SuperLink did not take the message"))
            return None
        self._open[message_id] = node
        if node in self._suspects:
            self._puller.alone.add(message_id)
        return carried_bytes(content) - len(payload)

    def receive(self, timeout: float) -> Iterable[Incoming]:
        """Return the replies that have come, or wait at most ``timeout`` seconds for one."""
        if self._unsent:
            unsent = self._unsent
            self._unsent = []
            return unsent
        replies: list[Incoming] = []
        for arrival in self._puller.receive(self._open.keys(), timeout, self._late.keys()):
            if isinstance(arrival, UnreadableReplies):
                replies += self._handle_unreadable(arrival)
            else:
                replies.append(self._read_reply(arrival))
        return replies

    def _close(self, message_id: str) -> tuple[int, bool]:
        """Close a message that is answered; return its node, and whether it was given up."""
        self._puller.alone.discard(message_id)
        is_late = message_id in self._late
        messages = self._late if is_late else self._open
        return messages.pop(message_id), is_late

    def _read_reply(self, reply: Message) -> Incoming:
        node, is_late = self._close(reply.metadata.reply_to_message_id)
        if reply.has_error():
            return Incoming(node, {}, b"", error=f"{reply.error.code}: {reply.error.reason}", late=is_late)
        self._suspects.discard(node)
        carried = carried_bytes(reply.content)
        try:
            status, payload = from_records(reply.content)
        except FedCompressError as error:
            status = {"status": "failed", "code": "malformed", "message": str(error)}
            return Incoming(node, status, b"", protocol=carried, late=is_late)
        self._puller.largest = max(self._puller.largest, len(payload))
        return Incoming(node, status, payload, protocol=carried - len(payload), late=is_late)

    def _handle_unreadable(self, lost: UnreadableReplies) -> list[Incoming]:
        """Close the messages whose replies are lost, so that their nodes are asked again, each apart.

        A reply that cannot be read takes with it what was pulled together with it.

        Raises:
            Exception: the SuperLink does not answer, so that it was not a reply's fault.
        """
        self._grid.get_node_ids()
        LOG.warning("replies to %d messages cannot be read: %s", len(lost.ids), lost.error)
        status = {"status": "failed", "code": "unreadable", "message": f"{type(lost.error).__name__}: {lost.error}"}
        replies = []
        for message_id in (name for name in lost.ids if name in self._open or name in self._late):
            node, is_late = self._close(message_id)
            self._suspects.add(node)
            replies.append(Incoming(node, status, b"", late=is_late))
        return replies

    def forget(self, nodes: Iterable[int]) -> None:
        """Give up the open messages to some nodes; a reply that still comes is late."""
        given_up = set(nodes)
        self._late |= {message: node for message, node in self._open.items() if node in given_up}
        self._open = {message: node for message, node in self._open.items() if node not in given_up}
        self._unsent = [reply for reply in self._unsent if reply.node not in given_up]
