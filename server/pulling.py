"""Replies out of Flower's grid. A pull waits for uploads that are under way, so it is done aside, for a few messages.

Flower 1.41 hands a reply over when its upload begins, and then waits for its objects, one reply after another, for up
to two hours. If the coordinator itself asked for all replies at once, a slow site would hold up others and deadlines.
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
PARTS = 4  # of all that is awaited, at least; each is a pull of its own
MOST = 16 << 20  # bytes that one pull may bring, by the largest reply so far; one reply may be larger
YOUNG = 1.0  # seconds; a pull that takes longer waits for an upload
AT_ONCE = 2  # young pulls
THREADS = 64

Pull = Callable[[list[str]], Iterable[Message]]


@dataclass(frozen=True)
class Lost:
    """A pull that has failed: Flower may not have the replies to these messages any more."""

    ids: tuple[str, ...]
    error: Exception


@dataclass(frozen=True)
class _Flight:
    ids: tuple[str, ...]
    began: float


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
    _number: int = 0
    _began: float = -math.inf

    def receive(self, wanted: Set[str], timeout: float) -> list[Message | Lost]:
        """What one pull has brought or lost of what is wanted, or nothing if none did in time."""
        deadline = self.clock() + timeout
        while True:
            self._begin(wanted)
            landed = self._next(max(0.0, min(POLL, deadline - self.clock())))
            found = [what for what in landed if not wanted.isdisjoint(_ids(what))]
            if found or self.clock() >= deadline:
                return found

    def _begin(self, wanted: Set[str]) -> None:
        """Start the next pull, if it is time: of those that were not asked for the longest."""
        now = self.clock()
        young = sum(now - flight.began < YOUNG for flight in self._flights.values())
        if now - self._began < POLL or young >= AT_ONCE or len(self._flights) >= THREADS:
            return
        flying = {name for flight in self._flights.values() for name in flight.ids}
        self._asked = {name: self._asked.get(name, -math.inf) for name in wanted}
        idle = sorted((name for name in self._asked if name not in flying), key=self._asked.__getitem__)
        few = min(math.ceil(len(self._asked) / PARTS), max(1, MOST // self.largest))
        if not idle:
            return
        ids = idle[:1] if idle[0] in self.alone else [name for name in idle[:few] if name not in self.alone]
        self._asked.update(dict.fromkeys(ids, now))
        self._began, self._number = now, self._number + 1
        self._flights[self._number] = _Flight(tuple(ids), now)
        threading.Thread(target=self._fly, args=(self._number, ids), name="pull", daemon=True).start()

    def _fly(self, number: int, ids: list[str]) -> None:
        found: list[Message] | Exception
        try:
            found = list(self.pull(ids))
        except Exception as error:  # is told where replies are awaited
            found = error
        self._landed.put((number, found))

    def _next(self, timeout: float) -> list[Message | Lost]:
        try:
            number, found = self._landed.get(timeout=timeout)
        except Empty:
            return []
        flight = self._flights.pop(number)
        return [Lost(flight.ids, found)] if isinstance(found, Exception) else [*found]


def _ids(what: Message | Lost) -> tuple[str, ...]:
    return what.ids if isinstance(what, Lost) else (what.metadata.reply_to_message_id,)
