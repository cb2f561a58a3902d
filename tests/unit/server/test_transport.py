"""Flower's grid as the coordinator sees it; the grid is a stand-in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedcompress.flower import from_records, to_records
from server.app import GridTransport


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower sets it in a ServerApp's process; messages carry it."""
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)


class FakeGrid:
    """Takes messages, or not; answers what it is told to."""

    def __init__(self) -> None:
        self.ids: list[list[str]] = []
        self.pushed: list[Message] = []
        self.replies: list[Message] = []
        self.asked: list[list[str]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.pushed += messages
        return self.ids.pop(0)

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        self.asked.append(list(ids))
        replies, self.replies = self.replies, []
        return replies


class Task:
    """As much of a task as the transport looks at."""

    round = 3

    def to_json(self) -> str:
        return "{}"


def send(transport: GridTransport, node: int) -> None:
    task: Any = Task()
    transport.send(node, task, b"payload")


def test_a_message_and_its_reply() -> None:
    grid: Any = FakeGrid()
    grid.ids = [["m1"]]
    transport = GridTransport(grid)
    node = (1 << 63) + 5
    send(transport, node)
    (message,) = grid.pushed
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (node, "3")
    assert from_records(message.content) == ({"task": "{}", "signature": ""}, b"payload")
    message.metadata.__dict__["_message_id"] = "m1"
    grid.replies = [Message(to_records({"status": "ok"}, b"back"), reply_to=message)]
    (reply,) = transport.receive(5)
    assert (reply.node, reply.status, reply.payload, reply.error) == (node, {"status": "ok"}, b"back", "")
    assert list(transport.receive(0)) == []
    assert grid.asked == [["m1"]], "an answered message is not asked for again"


def test_a_reply_that_is_not_ours_is_an_error_of_that_node() -> None:
    grid: Any = FakeGrid()
    grid.ids = [["m1"]]
    transport = GridTransport(grid)
    send(transport, 7)
    grid.pushed[0].metadata.__dict__["_message_id"] = "m1"
    grid.replies = [Message(RecordDict(), reply_to=grid.pushed[0])]
    (reply,) = transport.receive(5)
    assert reply.node == 7
    assert "must have the record" in reply.error


@pytest.mark.parametrize("ids", [[], [""], [None]])
def test_a_message_that_was_not_taken_is_answered_at_once(ids: list[Any]) -> None:
    """The node has just left: the round does not wait for it until its deadline."""
    grid: Any = FakeGrid()
    grid.ids = [ids]
    transport = GridTransport(grid)
    send(transport, 7)
    (reply,) = transport.receive(3600)
    assert (reply.node, reply.payload) == (7, b"")
    assert "did not take the message" in reply.error
    grid.ids = [ids]
    send(transport, 8)
    transport.forget([7, 8])
    assert list(transport.receive(0)) == []
    assert grid.asked == []
