"""A round, to be read from top to bottom: sample, dispatch, collect, admit, aggregate, publish, commit."""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.config.run_config import RunConfig
from fedcompress.errors import NonFiniteError, TrainingError
from fedcompress.storage.failpoints import failpoint
from fedcompress.types import Layout
from server.events import Emit, RoundCommitted, WarningIssued
from server.ledger.ledger import Ledger, MergedRow
from server.ledger.versions import PublishedState
from server.round.aggregation import aggregate_round
from server.round.dispatch import Dispatcher
from server.round.evaluation import emit_quality
from server.round.intake import ReplyIntake
from server.round.open_round import OpenRound
from server.round.participants import Participants
from server.round.pending import MAX_RETRIES, PendingReplies
from server.round.shares import find_nodes_over_share, versions_per_turn
from server.transport.base import Transport

MOST_TURNS = 2  # turns of all sites that an update may be late, where `max-staleness` is less
SPARE = 2  # sites that must be awaited or free for each update that a buffer lacks, for shares to be kept


class RoundLoop:
    """Runs the rounds of a run, one after another.

    Args:
        config: of the run.
        layout: of the adapter.
        ledger: notes what a round asks, receives and publishes.
        transport: tells which nodes are connected.
        participants: chooses whom to ask.
        pending: knows who is awaited, and reads replies.
        dispatcher: sends tasks.
        intake: admits or refuses replies.
        published: the version to begin with.
        emit: takes events.

    Attributes:
        published: the version that was published last.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        layout: Layout,
        ledger: Ledger,
        transport: Transport,
        participants: Participants,
        pending: PendingReplies,
        dispatcher: Dispatcher,
        intake: ReplyIntake,
        published: PublishedState,
        emit: Emit,
    ) -> None:
        self.published = published
        self._config = config
        self._layout = layout
        self._ledger = ledger
        self._transport = transport
        self._participants = participants
        self._pending = pending
        self._dispatcher = dispatcher
        self._intake = intake
        self._emit = emit

    def run(self, number: int) -> None:
        """Run one round to its commit.

        Raises:
            TrainingError: too few nodes connect, there is no quorum after ``patience`` more deadlines, or sites enough
                for one are connected and have all failed again and again.
        """
        config, ledger = self._config, self._ledger
        failpoint("server.round-begun")
        open_round = OpenRound(
            number=number,
            published=self.published,
            steps=config.steps,
            enough=config.buffer or config.sites_per_round,
        )
        turn = versions_per_turn(len(self._transport.nodes()), config.buffer)
        oldest = self.published.version - max(config.max_staleness, MOST_TURNS * turn)
        stale = self._pending.trained_before(oldest)
        self._intake.give_up(stale, "stale", open_round, round_=number - 1)

        # Sample, dispatch, collect and admit, until there is a quorum, and aggregate.
        published, envelope = self._reach_step(open_round)

        # Publish and commit.
        now = self._pending.clock()
        seconds = now - (now if open_round.started_at is None else open_round.started_at)
        merged = [
            MergedRow(site=u.site, digest=u.envelope.digest.hex(), trained_version=u.version, norm=u.norm)
            for u in open_round.admitted
        ]
        with ledger.transaction():
            ledger.publish(
                published.version,
                digest=published.digest,
                envelope=envelope,
                state=published.state,
                residual=published.residual,
                outer=published.outer,
            )
            ledger.end_round(number, published.version, len(open_round.asked), merged, seconds)
        failpoint("server.after-commit")
        ledger.copy()
        ledger.collect_garbage()
        self._intake.discard_updates()
        self.published = published
        self._emit_committed(open_round, published, merged, seconds)

    def _reach_step(self, open_round: OpenRound) -> tuple[PublishedState, bytes]:
        """Collect updates and merge them; where the step is not finite, the longest of them is refused first."""
        self._reach_quorum(open_round)
        while True:
            updates = open_round.by_site
            failpoint("server.merge")
            self._ledger.check(self.published)
            try:
                published, envelope = aggregate_round(
                    self._config, self._layout, self.published, updates, open_round.number, blobs=self._ledger.blobs
                )
            except NonFiniteError as error:
                node = self._intake.outliers.drop_longest(open_round, str(error))
                if len(open_round.admitted) < self._config.quorum:
                    if self._participants.failures(node, open_round.number) > MAX_RETRIES:
                        raise TrainingError("no-quorum", f"round {open_round.number}: {error}") from error
                    self._reach_quorum(open_round)
                continue
            fresh = [update for update in updates if not open_round.age(update.version)]
            emit_quality(self._emit, self.published.version, fresh)
            return published, envelope

    def _reach_quorum(self, open_round: OpenRound) -> None:
        """Collect updates until a quorum was admitted, with ``patience`` more deadlines if it takes them."""
        config, number = self._config, open_round.number
        self._pending.wait_for_nodes()
        if open_round.started_at is None:
            open_round.started_at = self._pending.clock()
        for attempt in range(config.patience + 1):
            all_have_failed = self._collect_updates(open_round)
            count = len(open_round.admitted)
            if count >= config.quorum:
                break
            message = f"round {number}: {count} updates admitted: the quorum is {config.quorum}"
            if all_have_failed or attempt == config.patience:
                raise TrainingError("no-quorum", message)
            self._ledger.extend_tasks(config.round_timeout)
            self._emit(WarningIssued(message=f"{message}: waiting on, and asking who is free"))
        if config.late == "return":
            outcome = "deadline" if self._pending.is_expired() else "surplus"
            self._intake.give_up(self._pending.all(), outcome, open_round, round_=number)

    def _collect_updates(self, open_round: OpenRound) -> bool:
        """Sample, dispatch, collect and admit until there is a quorum or the deadline has passed.

        Whoever joins meanwhile is asked as well, and whoever has failed is asked again.

        Returns:
            Whether sites enough for a quorum are connected, and have all failed again and again.
        """
        number = open_round.number
        self._pending.clear_deadline()
        while True:
            connected = set(self._transport.nodes())
            sampled = self._sample(open_round)
            self._dispatcher.dispatch(sampled, open_round)
            self._pending.start_deadline()
            for reply in self._pending.receive(open_round):
                self._intake.handle_reply(reply, open_round)
            self._intake.outliers.drop_long(open_round)
            if len(open_round.admitted) >= self._config.quorum or self._pending.is_expired():
                return False
            not_to_ask = self._nodes_not_to_ask(open_round)
            remaining = set(self._transport.nodes()) - not_to_ask
            enough_are_connected = len(remaining | open_round.admitted_nodes) >= self._config.quorum
            fewest_failures = self._participants.fewest_failures(remaining, number)
            all_have_failed = fewest_failures is not None and fewest_failures >= MAX_RETRIES
            if all_have_failed and enough_are_connected and not self._pending.nodes:
                return True  # with fewer sites, others may still join: they are waited for
            candidates = remaining | (set(sampled) - not_to_ask)
            self._pending.wait_for_retry(open_round, connected, self._participants.fewest_failures(candidates, number))
            if self._pending.is_expired():
                return False

    def _sample(self, open_round: OpenRound) -> list[int]:
        """Choose nodes to ask, of those that are neither awaited nor have answered."""
        not_to_ask = self._nodes_not_to_ask(open_round)
        connected = self._transport.nodes()
        sites = self._ledger.sites()
        free = [node for node in connected if node not in not_to_ask]
        if self._config.buffer:
            over = find_nodes_over_share(sites, self._ledger.last_merged(len(connected) - 1))
            within = [node for node in free if node not in over]
            lacking = self._config.buffer - len(open_round.admitted)
            if len(within) + len(self._pending) >= SPARE * lacking:
                free = within
        return self._participants.choose(free, len(open_round.admitted), open_round.number, sites)

    def _nodes_not_to_ask(self, open_round: OpenRound) -> set[int]:
        """Return the nodes that are awaited, or whose sites have answered in this round."""
        elsewhere = self._participants.answered_elsewhere(open_round.number)
        return open_round.admitted_nodes | elsewhere | self._pending.nodes

    def _emit_committed(
        self, open_round: OpenRound, published: PublishedState, merged: Sequence[MergedRow], seconds: float
    ) -> None:
        self._emit(
            RoundCommitted(
                round=open_round.number,
                version=published.version,
                digest=published.digest.hex(),
                asked=len(open_round.asked),
                merged=len(merged),
                late=sum(open_round.age(update.version) > 0 for update in open_round.admitted),
                awaited=len(self._pending),
                uplink_bytes=self._ledger.payload_bytes("up", open_round.number)[0],
                downlink_bytes=self._ledger.payload_bytes("down", open_round.number)[0],
                updates=[f"{row.site}:{row.digest}" for row in merged],
                seconds=round(seconds, 3),
            )
        )
