"""Who is waiting for whom: the nodes that are awaited, since when and until when, and the replies that come.

The coordinator's clock and the deadline of what is awaited live here alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedcompress.config.run_config import RunConfig
from fedcompress.errors import TrainingError
from fedcompress.storage.failpoints import failpoint
from server.events import Emit, RepliesAwaited, RetryDelayed, SitesMissing
from server.round.open_round import OpenRound
from server.transport.base import Incoming, Transport

REMIND_AFTER = 30.0  # seconds between two reminders of who is awaited
RETRY_DELAY = 5.0  # seconds before a node is asked again; doubles with each of its failures in the round
MAX_DOUBLINGS = 6  # failures after which the delay does not grow any more
MAX_RETRIES = 4  # give up the round when every remaining node has failed so often
RECEIVE_TIMEOUT = 1.0  # seconds that one look for replies waits at most
JOIN_POLL = 0.2  # seconds between two looks at who is connected, while too few are
NEVER = float("inf")


@dataclass
class PendingReply:
    """A node that was asked, and whose reply is awaited.

    Attributes:
        node: id of the node.
        site: name of the site behind it; empty if it is not known.
        round: number of the round that it was asked for.
        version: version that it trains from.
        base_digest: state digest of that version, 32 bytes.
        number: number of its task in the ledger.
        sent_at: when it was asked, on the coordinator's clock, seconds.
        sent_bytes: size of its downlink.
        is_resent: whether it was sent its task a second time, after a failure that sending again can heal.
    """

    node: int
    site: str
    round: int
    version: int
    base_digest: bytes
    number: int
    sent_at: float
    sent_bytes: int
    is_resent: bool = False

    @property
    def name(self) -> str:
        """Return the site's name, or the node's id where the site is not known."""
        return self.site or str(self.node)

    def rate(self, received_bytes: int, metrics: Mapping[str, float], received_at: float) -> float:
        """Compute the transfer rate of the exchange, without the time that the site says it worked.

        Args:
            received_bytes: size of the reply's payload.
            metrics: of the reply; ``seconds_train`` and ``seconds_evaluate`` are the time that the site worked.
            received_at: when the reply came, on the coordinator's clock, seconds.

        Returns:
            Bytes per second, both ways together; 0 if the exchange took no time.
        """
        worked = metrics.get("seconds_train", 0.0) + metrics.get("seconds_evaluate", 0.0)
        seconds = received_at - self.sent_at - worked
        return (self.sent_bytes + received_bytes) / seconds if seconds > 0 else 0.0


class PendingReplies:
    """Keeps the replies that are awaited, the deadline for them, and the replies that came while nobody looked.

    Args:
        config: of the run.
        transport: to the nodes.
        emit: takes events.
        clock: seconds, monotonic.
    """

    def __init__(self, config: RunConfig, transport: Transport, emit: Emit, clock: Callable[[], float]) -> None:
        self._config = config
        self._transport = transport
        self._emit = emit
        self.clock = clock
        self._by_node: dict[int, PendingReply] = {}
        self._early: list[Incoming] = []  # replies that came before anybody collected them
        self._deadline = NEVER

    def __len__(self) -> int:
        return len(self._by_node)

    def __getitem__(self, node: int) -> PendingReply:
        return self._by_node[node]

    @property
    def nodes(self) -> set[int]:
        """Return the ids of the nodes that are awaited."""
        return set(self._by_node)

    def all(self) -> list[PendingReply]:
        """Return all that is awaited, in the order in which it was asked."""
        return list(self._by_node.values())

    def trained_before(self, version: int) -> list[PendingReply]:
        """Return what is awaited from nodes that train from an older version than this one."""
        return [pending for pending in self._by_node.values() if pending.version < version]

    def add(self, pending: PendingReply) -> None:
        """Await the reply of one more node."""
        self._by_node[pending.node] = pending

    def take(self, node: int) -> PendingReply | None:
        """Remove a node that has replied from those that are awaited; return None if nobody awaits it."""
        return self._by_node.pop(node, None)

    def forget(self, replies: Sequence[PendingReply]) -> None:
        """Give up some replies; if they come all the same, they are late."""
        self._transport.forget([pending.node for pending in replies])
        for pending in replies:
            del self._by_node[pending.node]

    # The deadline

    def clear_deadline(self) -> None:
        """Await without a deadline until ``start_deadline`` is called."""
        self._deadline = NEVER

    def start_deadline(self, most: float = NEVER) -> None:
        """Let the time run from now, unless it runs already.

        Args:
            most: seconds that replies are awaited at most, where ``round-timeout`` is longer.
        """
        self._deadline = min(self._deadline, self.clock() + min(self._config.round_timeout, most))

    def is_expired(self) -> bool:
        """Return whether the deadline has passed."""
        return self.clock() >= self._deadline

    def seconds_for_new(self) -> float:
        """Return for how many seconds the reply of a node is awaited that is asked now."""
        return min(self._config.round_timeout, self._deadline - self.clock())

    # Waiting

    def receive(self, open_round: OpenRound) -> Iterator[Incoming]:
        """Yield replies until the round has enough updates, nobody is awaited for it, or the deadline has passed.

        With a buffer, those who were asked in an earlier round are awaited, too.
        """
        reminded_at = self.clock()
        early = self._early
        self._early = []
        yield from early
        while (left := self._deadline - self.clock()) > 0:
            is_buffered = bool(self._config.buffer)
            awaited = [p for p in self._by_node.values() if p.round == open_round.number or is_buffered]
            if not awaited or open_round.is_complete:
                return
            if self.clock() - reminded_at >= REMIND_AFTER:
                reminded_at = self.clock()
                names = [pending.name for pending in awaited]
                self._emit(RepliesAwaited(round=open_round.number, names=names, left_seconds=round(left)))
            for reply in self._transport.receive(min(left, RECEIVE_TIMEOUT)):
                failpoint("server.reply")
                yield reply

    def wait_for_retry(self, open_round: OpenRound, connected: set[int], fewest_failures: int | None) -> None:
        """Wait until failed nodes may be asked again, another node connects, a late reply comes, or the deadline.

        Args:
            open_round: which lacks a quorum, and for which nobody is awaited.
            connected: ids of the nodes that were connected when somebody was asked last.
            fewest_failures: how often the node has failed, of those that can still answer, that has failed least: it is
                asked again first; None if there is no such node.
        """
        pause = NEVER
        if fewest_failures is not None:
            pause = RETRY_DELAY * 2 ** min(fewest_failures, MAX_DOUBLINGS)
        until = min(self._deadline, self.clock() + pause)
        self._emit(
            RetryDelayed(
                round=open_round.number,
                updates=len(open_round.admitted),
                needed=self._config.quorum,
                left_seconds=round(until - self.clock()),
            )
        )
        while (left := until - self.clock()) > 0 and not self._early and set(self._transport.nodes()) <= connected:
            self._early += self._transport.receive(min(left, RECEIVE_TIMEOUT))

    def wait_for_nodes(self) -> list[int]:
        """Wait until at least ``min-sites`` nodes are connected, and return their ids.

        Raises:
            TrainingError: they are not within ``join-timeout``.
        """
        config = self._config
        deadline = self.clock() + config.join_timeout
        reported = -1
        while True:
            nodes = self._transport.nodes()
            if len(nodes) >= config.min_sites:
                return nodes
            if self.clock() > deadline:
                raise TrainingError(
                    "no-sites",
                    f"min-sites: {len(nodes)} connected: {config.min_sites} needed "
                    f"within join-timeout, {config.join_timeout:.0f} s",
                )
            if len(nodes) != reported:
                reported = len(nodes)
                self._emit(SitesMissing(sites=reported, needed=config.min_sites))
            self._early += self._transport.receive(JOIN_POLL)
