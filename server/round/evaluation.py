"""Sites evaluate each published version on their held-out rows; here their numbers are asked for and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from server.events import Emit, QualityMeasured
from server.ledger.quality import pool_quality
from server.ledger.versions import PublishedState
from server.round.aggregation import AdmittedUpdate
from server.round.dispatch import Dispatcher
from server.round.intake import ReplyIntake
from server.round.open_round import OpenRound
from server.round.pending import PendingReplies


def evaluate_last_version(
    number: int,
    published: PublishedState,
    *,
    pending: PendingReplies,
    dispatcher: Dispatcher,
    intake: ReplyIntake,
    emit: Emit,
) -> None:
    """Ask all sites for the quality of the last version; nobody is waited for beyond the deadline.

    In a round, sites evaluate the version that the round starts from; no round starts from the last version.

    Args:
        number: one more than that of the last round.
        published: the last version.
        pending: knows who is awaited, and reads replies.
        dispatcher: sends tasks.
        intake: admits or refuses replies.
        emit: takes events.

    Raises:
        TrainingError: too few nodes connect.
    """
    evaluation = OpenRound(number=number, published=published, steps=0)
    intake.give_up(pending.all(), "finished", evaluation, round_=number)
    pending.clear_deadline()
    dispatcher.dispatch(pending.wait_for_nodes(), evaluation)
    pending.start_deadline()
    for reply in pending.receive(evaluation):
        intake.handle_reply(reply, evaluation)
    intake.give_up(pending.all(), "deadline", evaluation, round_=number)
    emit_quality(emit, published.version, evaluation.by_site)


def emit_quality(emit: Emit, version: int, updates: Sequence[AdmittedUpdate]) -> None:
    """Emit the pooled quality of a version, if any of the sites has reported it.

    Args:
        emit: takes the event.
        version: the version that the sites evaluated.
        updates: updates or reports with their metrics, in the order of sites, since sums depend on it.
    """
    quality = pool_quality(update.envelope.header.metrics for update in updates)
    if quality is not None:
        emit(QualityMeasured(version=version, **asdict(quality)))
