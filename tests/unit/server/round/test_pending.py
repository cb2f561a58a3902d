"""Who is awaited, until when, and how long a failed node is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.ledger.versions import PublishedState
from server.round.open_round import OpenRound
from server.round.pending import MAX_DOUBLINGS, RETRY_DELAY, PendingReplies, PendingReply
from tests.unit.server.memory import MemoryTransport, run_config

OPEN_ROUND = OpenRound(number=1, published=PublishedState(2, b"", {}, {}), steps=1)


@pytest.fixture
def transport() -> MemoryTransport:
    return MemoryTransport({})


@pytest.fixture
def pending(tmp_path: Path, transport: MemoryTransport) -> PendingReplies:
    config = run_config(tmp_path, 1, round_timeout=1000.0)
    return PendingReplies(config, transport, lambda event: None, transport.clock)


def reply(**changes: Any) -> PendingReply:
    fields = {"node": 1, "site": "", "round": 1, "version": 2, "base_digest": b"", "number": 1, "sent_at": 10.0}
    return PendingReply(**{**fields, "sent_bytes": 600, **changes})


def test_the_deadline_runs_from_the_first_time_on(pending: PendingReplies, transport: MemoryTransport) -> None:
    assert pending.seconds_for_new() == 1000
    assert not pending.is_expired()
    pending.start_deadline()
    transport.now = 400.0
    pending.start_deadline()
    assert pending.seconds_for_new() == 600
    transport.now = 1000.0
    assert pending.is_expired()
    pending.clear_deadline()
    assert not pending.is_expired()


@pytest.mark.parametrize(("failures", "seconds"), [(0, 5), (1, 10), (4, 80), (50, RETRY_DELAY * 2**MAX_DOUBLINGS)])
def test_the_pause_before_a_retry_doubles(
    pending: PendingReplies, transport: MemoryTransport, failures: int, seconds: float
) -> None:
    pending.start_deadline()
    pending.wait_for_retry(OPEN_ROUND, set(), failures)
    assert transport.now == seconds


def test_without_anybody_to_ask_the_deadline_ends_the_pause(
    pending: PendingReplies, transport: MemoryTransport
) -> None:
    pending.start_deadline()
    pending.wait_for_retry(OPEN_ROUND, set(), None)
    assert transport.now == 1000


def test_who_is_awaited(pending: PendingReplies) -> None:
    older, newer = reply(version=1), reply(node=2, site="north")
    pending.add(older)
    pending.add(newer)
    assert pending.nodes == {1, 2}
    assert [p.name for p in pending.all()] == ["1", "north"]
    assert pending.trained_before(2) == [older]
    pending.forget([older])
    assert pending.take(1) is None
    assert pending.take(2) is newer
    assert len(pending) == 0


def test_a_rate_leaves_out_the_time_that_a_site_worked() -> None:
    assert reply().rate(400, {"seconds_train": 5.0, "seconds_evaluate": 1.0}, 18.0) == 500
    assert reply().rate(400, {"seconds_train": 8.0}, 18.0) == 0
