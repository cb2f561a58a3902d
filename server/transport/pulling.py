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
THREADS = 64  # pulls that may bring what is awaited
REST = 0.5  # seconds between the beginnings of two pulls of what nobody awaits
ASIDE = 16  # of those, at once

Pull = Callable[[list[str]], Iterable[Message]]


@dataclass(frozen=True)
class UnreadableReplies:
    """A pull that has failed: Flower may not have the replies to these messages any more."""

    ids: tuple[str, ...]
    error: Exception


@dataclass(frozen=True)
class _Flight:
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
    _number: int = 0
    _began: dict[bool, float] = field(default_factory=dict)  # the last pull of what is awaited, and of what is not

    def receive(
        self, wanted: Set[str], timeout: float, aside: Set[str] = frozenset()
    ) -> list[Message | UnreadableReplies]:
        """What one pull has brought or lost of what is wanted or aside, or nothing if none did in time.

        What is ``aside`` is looked for now and then, one by one, and holds nothing up that is wanted.
        """
        deadline = self.clock() + timeout
        while True:
            self._begin(wanted, aside)
            landed = self._next(max(0.0, min(POLL, deadline - self.clock())))
            found = [what for what in landed if not (wanted | aside).isdisjoint(_ids(what))]
            if found or self.clock() >= deadline:
                return found

    def _begin(self, wanted: Set[str], aside: Set[str]) -> None:
        """Start the next pulls, if it is time: of those that were not asked for the longest."""
        now = self.clock()
        flights = self._flights.values()
        flying = {name for flight in flights for name in flight.ids}
        self._asked = {name: self._asked.get(name, -math.inf) for name in (*wanted, *aside)}
        if now - self._began.get(True, -math.inf) >= REST and sum(f.is_aside for f in flights) < ASIDE:
            self._start(self._idle(aside - flying)[:1], now, is_aside=True)
        young = sum(now - f.began < YOUNG for f in flights if not f.is_aside)
        busy = sum(not wanted.isdisjoint(f.ids) for f in flights)
        if now - self._began.get(False, -math.inf) >= POLL and young < AT_ONCE and busy < THREADS:
            idle = self._idle(wanted - flying)
            few = min(math.ceil(len(wanted) / PARTS), max(1, MOST // self.largest))
            alone = bool(idle) and idle[0] in self.alone
            ids = idle[:1] if alone else [name for name in idle[:few] if name not in self.alone]
            self._start(ids, now, is_aside=False)

    def _idle(self, names: Set[str]) -> list[str]:
        return sorted(names, key=self._asked.__getitem__)

    def _start(self, ids: list[str], now: float, *, is_aside: bool) -> None:
        if not ids:
            return
        self._asked.update(dict.fromkeys(ids, now))
        self._began[is_aside], self._number = now, self._number + 1
        self._flights[self._number] = _Flight(tuple(ids), now, is_aside)
        threading.Thread(target=self._fly, args=(self._number, ids), name="pull", daemon=True).start()

    def _fly(self, number: int, ids: list[str]) -> None:
        found: list[Message] | Exception
        try:
            found = list(self.pull(ids))
        except Exception as error:  # is told where replies are awaited
            found = error
        self._landed.put((number, found))

    def _next(self, timeout: float) -> list[Message | UnreadableReplies]:
        try:
            number, found = self._landed.get(timeout=timeout)
        except Empty:
            return []
        flight = self._flights.pop(number)
        return [UnreadableReplies(flight.ids, found)] if isinstance(found, Exception) else [*found]


def _ids(what: Message | UnreadableReplies) -> tuple[str, ...]:
    return what.ids if isinstance(what, UnreadableReplies) else (what.metadata.reply_to_message_id,)
