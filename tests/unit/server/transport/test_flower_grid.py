"""Flower's grid as the coordinator sees it; the grid is a stand-in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.task_identity import TaskIdentity

from fedcompress.flower import from_records, to_records
from server.transport import pulling
from server.transport.flower_grid import GridTransport


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower sets it in a ServerApp's process; messages carry it."""
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)


class FakeGrid:
    """Takes messages, or not; answers what it is told to."""

    is_there = True

    def __init__(self) -> None:
        self.ids: list[list[str]] = []
        self.pushed: list[Message] = []
        self.replies: list[Message] = []
        self.asked: list[list[str]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.pushed += messages
        return self.ids.pop(0)

    def get_node_ids(self) -> list[int]:
        if not self.is_there:
            raise ConnectionError("no SuperLink")
        return []

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


def test_a_reply_that_is_not_ours_is_a_failure_of_that_node() -> None:
    """Not Flower's: it has crossed the link, and is a strike."""
    grid: Any = FakeGrid()
    grid.ids = [["m1"]]
    transport = GridTransport(grid)
    send(transport, 7)
    grid.pushed[0].metadata.__dict__["_message_id"] = "m1"
    grid.replies = [Message(RecordDict(), reply_to=grid.pushed[0])]
    (reply,) = transport.receive(5)
    assert (reply.node, reply.error, reply.status["code"]) == (7, "", "malformed")
    assert "must have the record" in reply.status["message"]
    assert reply.protocol > 0


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


def test_a_message_that_could_not_be_pushed_is_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SuperLink that did not answer in time has begun anew with it: the others of the round need not suffer."""
    grid: Any = FakeGrid()

    def expired(messages: Iterable[Message]) -> list[str]:
        raise ObjectPushError("5c7b", 1, "a session that was replaced")

    monkeypatch.setattr(grid, "push_messages", expired)
    transport = GridTransport(grid)
    send(transport, 7)
    (reply,) = transport.receive(3600)
    assert (reply.node, reply.payload) == (7, b"")
    assert "did not take the message" in reply.error


class SlowGrid(FakeGrid):
    """Has a reply for each message; those of some ids are being uploaded until they are let go."""

    def __init__(self, *slow: str) -> None:
        super().__init__()
        self.uploads = {name: threading.Event() for name in slow}
        self.done: set[str] = set()

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        wanted = list(ids)
        self.asked.append(wanted)
        assert not self.done & set(wanted), "Flower says of a reply that was handed over that it is lost"
        self.done |= set(wanted)
        for name in wanted:
            if name in self.uploads:
                assert self.uploads[name].wait(30)
        by_id = {str(m.metadata.message_id): m for m in self.pushed}
        return [Message(to_records({"status": "ok"}, name.encode()), reply_to=by_id[name]) for name in wanted]


def sent_to(grid: SlowGrid, count: int) -> GridTransport:
    """A transport that has asked so many nodes, 1, 2, ...; messages are m1, m2, ..."""
    as_grid: Any = grid
    transport = GridTransport(as_grid)
    for node in range(1, count + 1):
        grid.ids = [[f"m{node}"]]
        send(transport, node)
        grid.pushed[-1].metadata.__dict__["_message_id"] = f"m{node}"
    return transport


def taken(transport: GridTransport, count: int) -> dict[int, bytes]:
    """So many replies, by node; each must come within ten seconds."""
    found: dict[int, bytes] = {}
    while len(found) < count:
        replies = list(transport.receive(10))
        assert replies
        found |= {reply.node: reply.payload for reply in replies}
    return found


def test_a_slow_upload_holds_up_nobody() -> None:
    grid = SlowGrid("m1", "m3")
    transport = sent_to(grid, 4)
    assert taken(transport, 2) == {2: b"m2", 4: b"m4"}
    began = time.monotonic()
    assert list(transport.receive(0.2)) == []
    assert time.monotonic() - began < 5, "the deadline waited for the upload"
    for upload in grid.uploads.values():
        upload.set()
    assert taken(transport, 2) == {1: b"m1", 3: b"m3"}


def test_what_comes_after_it_was_given_up_is_late() -> None:
    """The node may have been asked again: it must not be taken for the answer to that."""
    grid = SlowGrid("m1")
    transport = sent_to(grid, 2)
    assert taken(transport, 1) == {2: b"m2"}
    transport.forget([1])
    grid.ids = [["m3"]]
    send(transport, 1)
    grid.pushed[-1].metadata.__dict__["_message_id"] = "m3"
    (reply,) = transport.receive(10)
    assert (reply.node, reply.payload, reply.late) == (1, b"m3", False)
    grid.uploads["m1"].set()
    (reply,) = transport.receive(10)
    assert (reply.node, reply.payload, reply.late) == (1, b"m1", True)
    assert not transport._late


def test_more_uploads_than_are_pulled_at_once() -> None:
    """After a second, one that waits does not count."""
    grid = SlowGrid(*(f"m{n}" for n in range(1, 8)))
    transport = sent_to(grid, 8)
    for name, upload in grid.uploads.items():
        if name != "m1":
            upload.set()
    assert len(taken(transport, 6)) >= 6
    grid.uploads["m1"].set()


def test_uploads_that_were_given_up_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads for what is awaited, each of which waits for its upload."""
    for name, value in (("YOUNG", 0.0), ("POLL", 0.001), ("REST", 0.01)):
        monkeypatch.setattr(pulling, name, value)
    grid = SlowGrid(*(f"m{n}" for n in range(1, 81)))
    transport = sent_to(grid, 80)
    transport._puller.largest = pulling.MOST
    while len(transport._puller._flights) < pulling.THREADS:
        transport.receive(0.01)
    assert max(len(ids) for ids in grid.asked) == 1
    transport.forget(range(1, 81))
    grid.ids = [["m81"]]
    send(transport, 81)
    grid.pushed[-1].metadata.__dict__["_message_id"] = "m81"
    assert taken(transport, 1) == {81: b"m81"}
    for upload in grid.uploads.values():
        upload.set()
    assert len(taken(transport, 80)) == 80


def test_what_was_given_up_is_looked_for_now_and_then() -> None:
    """However much of it there is: it is what is awaited that is asked for all the time."""
    grid: Any = FakeGrid()
    grid.ids = [[f"m{node}"] for node in range(61)]
    transport = GridTransport(grid)
    for node in range(61):
        send(transport, node)
    transport.forget(range(60))
    began = time.monotonic()
    assert list(transport.receive(2.0)) == []
    aside = [ids for ids in grid.asked if ids != ["m60"]]
    assert 1 <= len(aside) <= (time.monotonic() - began) / pulling.REST + 1
    assert {len(ids) for ids in aside} == {1}
    assert grid.asked.count(["m60"]) > len(aside)


def test_large_replies_are_pulled_one_by_one() -> None:
    grid = SlowGrid()
    transport = sent_to(grid, 40)
    transport._puller.largest = 5 << 20
    assert len(taken(transport, 40)) == 40
    assert {len(ids) for ids in grid.asked} <= {1, 2, 3}


def test_what_is_raised_since_the_superlink_is_gone_is_raised() -> None:
    grid = SlowGrid()
    transport = sent_to(grid, 1)
    grid.done, grid.is_there = {"m1"}, False
    with pytest.raises(ConnectionError, match="no SuperLink"):
        transport.receive(10)


class HostileGrid(SlowGrid):
    """The reply to node 3 cannot be read; Flower hands over, and forgets, all that is pulled together with it."""

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        wanted = list(ids)
        found = super().pull_messages(wanted)
        by_id = {str(m.metadata.message_id): m.metadata.dst_node_id for m in self.pushed}
        if any(by_id[name] == 3 for name in wanted):
            raise ValueError("an array that is none")
        return found


def test_a_reply_that_cannot_be_read_is_its_own_loss() -> None:
    """What went down with it is told to be asked again, and is then pulled apart from it."""
    grid = HostileGrid()
    transport = sent_to(grid, 8)
    found = []
    while len(found) < 8:
        found += transport.receive(10)
    lost = {reply.node for reply in found if reply.status.get("code") == "unreadable"}
    assert 3 in lost
    assert len(lost) < 8
    for number, node in enumerate(sorted(lost)):
        grid.ids = [[f"n{number}"]]
        send(transport, node)
        grid.pushed[-1].metadata.__dict__["_message_id"] = f"n{number}"
    found = []
    while len(found) < len(lost):
        found += transport.receive(10)
    assert {reply.node for reply in found if reply.status.get("code") == "unreadable"} == {3}
    assert not transport._puller.alone


def test_what_is_raised_for_what_was_given_up_is_nobodys_loss() -> None:
    grid = SlowGrid("m1")
    transport = sent_to(grid, 1)
    assert list(transport.receive(0.2)) == []
    transport.forget([1])
    grid.pushed.clear()  # the pull will fail
    grid.uploads["m1"].set()
    (reply,) = transport.receive(10)
    assert (reply.node, reply.late, reply.payload) == (1, True, b"")
    assert not transport._puller._flights
