"""Replies are pulled out of Flower's grid in threads, for a few messages at a time.

Flower 1.41 hands a reply over when its upload begins, and then waits for its objects, one reply after another, for up
to two hours. If the coordinator itself asked for all replies at once, a slow site would hold up others and deadlines:
a pull waits for uploads that are under way.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from flwr.app import Message

POLL = 0.05  # seconds between the beginnings of two pulls
PARTS = 4  # pulls, at least, over which the awaited messages are spread
MOST = 16 << 20  # bytes that one pull may bring, by the largest reply so far; one reply may be larger
YOUNG = 1.0  # seconds after which a pull is no longer young: it waits for an upload
AT_ONCE = 2  # young pulls at a time
THREADS = 64  # pulls of awaited messages at a time
REST = 0.5  # seconds between the beginnings of two pulls of messages that nobody awaits
ASIDE = 16  # pulls of messages that nobody awaits at a time

Pull = Callable[[list[str]], Iterable[Message]]


@dataclass(frozen=True)
class UnreadableReplies:
    """Names the messages of a pull that has failed: Flower may not have their replies any more.

    Attributes:
        ids: of the messages.
        error: that the pull has raised.
    """

    ids: tuple[str, ...]
    error: Exception


@dataclass(frozen=True)
class _Flight:
    """A pull that is under way."""

    ids: tuple[str, ...]
    began: float
    is_aside: bool


@dataclass
class Puller:
    """Pulls replies in threads, each message by one of them.

    Args:
        pull: asks for the replies to some messages, by their ids.
        clock: seconds, monotonic.

    Attributes:
        largest: bytes of a reply.
        alone: messages whose replies are pulled each by itself, since one may take others with it.
    """

    pull: Pull
    clock: Callable[[], float] = time.monotonic
    largest: int = 1
    alone: set[str] = field(default_factory=set)
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _landed: SimpleQueue[tuple[int, list[Message] | Exception]] = field(default_factory=SimpleQueue)
    _asked: dict[str, float] = field(default_factory=dict)  # when a message was last asked for
    _number: int = 0  # of the last pull
    _began: dict[bool, float] = field(default_factory=dict)  # by ``is_aside``, when the last pull began

    def receive(
        self, awaited: Set[str], timeout: float, aside: Set[str] = frozenset()
    ) -> list[Message | UnreadableReplies]:
        """Return what one pull has brought or lost, or nothing if none has in time.

        Args:
            awaited: ids of the messages whose replies are awaited.
            timeout: seconds to wait at most.
            aside: ids of messages that nobody awaits; their replies are looked for now and then, one by one, and hold
                nothing up that is awaited.

        Returns:
            Replies, or the messages that a failed pull was for.
        """
        deadline = self.clock() + timeout
        while True:
            self._begin(awaited, aside)
            landed = self._take_landed(max(0.0, min(POLL, deadline - self.clock())))
            arrivals = [arrival for arrival in landed if not (awaited | aside).isdisjoint(_message_ids(arrival))]
            if arrivals or self.clock() >= deadline:
                return arrivals

    def _begin(self, awaited: Set[str], aside: Set[str]) -> None:
        """Start the next pulls, if it is time: of those that were not asked for the longest."""
        now = self.clock()
        flights = self._flights.values()
        flying = {name for flight in flights for name in flight.ids}
        self._asked = {name: self._asked.get(name, -math.inf) for name in (*awaited, *aside)}
        if now - self._began.get(True, -math.inf) >= REST and sum(f.is_aside for f in flights) < ASIDE:
            self._start(self._idle(aside - flying)[:1], now, is_aside=True)
        young = sum(now - f.began < YOUNG for f in flights if not f.is_aside)
        busy = sum(not awaited.isdisjoint(f.ids) for f in flights)
        if now - self._began.get(False, -math.inf) >= POLL and young < AT_ONCE and busy < THREADS:
            idle = self._idle(awaited - flying)
            count = min(math.ceil(len(awaited) / PARTS), max(1, MOST // self.largest))
            ids = [name for name in idle[:count] if name not in self.alone]
            if idle and idle[0] in self.alone:
                ids = idle[:1]
            self._start(ids, now, is_aside=False)

    def _idle(self, names: Set[str]) -> list[str]:
        """Sort messages by when they were asked for last, the longest ago first."""
        return sorted(names, key=self._asked.__getitem__)

    def _start(self, ids: list[str], now: float, *, is_aside: bool) -> None:
        if not ids:
            return
        self._asked.update(dict.fromkeys(ids, now))
        self._began[is_aside] = now
        self._number += 1
        self._flights[self._number] = _Flight(tuple(ids), now, is_aside)
        threading.Thread(target=self._fly, args=(self._number, ids), name="pull", daemon=True).start()

    def _fly(self, number: int, ids: list[str]) -> None:
        result: list[Message] | Exception
        try:
            result = list(self.pull(ids))
        except Exception as error:  # is told where replies are awaited
            result = error
        self._landed.put((number, result))

    def _take_landed(self, timeout: float) -> list[Message | UnreadableReplies]:
        """Return what the next pull that ends has brought or lost; nothing if none ends in time."""
        try:
            number, result = self._landed.get(timeout=timeout)
        except Empty:
            return []
        flight = self._flights.pop(number)
        return [UnreadableReplies(flight.ids, result)] if isinstance(result, Exception) else [*result]


def _message_ids(arrival: Message | UnreadableReplies) -> tuple[str, ...]:
    if isinstance(arrival, UnreadableReplies):
        return arrival.ids
    return (arrival.metadata.reply_to_message_id,)
