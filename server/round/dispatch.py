"""Sends the tasks of a round: to each node what brings its site to the newest version, and what it is to do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from fedcompress.adapters import Template
from fedcompress.adapters.constants import INITIAL_FACTOR_SUFFIX, load_constants
from fedcompress.config.run_config import RunConfig
from fedcompress.identity import PrivateKey
from fedcompress.pipeline.states import encode_constants
from fedcompress.storage.failpoints import failpoint
from fedcompress.wire import digest_of
from server.events import DamageRepaired, Emit, SitesAsked
from server.ledger.ledger import Ledger
from server.round.downlink import DownlinkBuilder
from server.round.open_round import OpenRound
from server.round.pending import PendingReplies, PendingReply
from server.round.signatures import sign_task_message
from server.round.tasks import build_task
from server.transport.base import Transport


class Dispatcher:
    """Sends tasks and downlinks, and notes whose reply is awaited from then on.

    Args:
        config: of the run.
        template: of the adapter; its tensors are not needed.
        constants: packed constants of the adapter, which a site that cannot rebuild them is sent; empty if there are
            none.
        key: the coordinator's, with which downlinks and tasks are signed; None signs nothing.
        ledger: notes tasks and messages.
        transport: to the nodes.
        pending: takes who is awaited.
        emit: takes events.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        template: Template,
        constants: bytes,
        key: PrivateKey | None,
        ledger: Ledger,
        transport: Transport,
        pending: PendingReplies,
        emit: Emit,
    ) -> None:
        self._config = config
        self._template = template
        self._constants = constants
        self._key = key
        self._ledger = ledger
        self._transport = transport
        self._pending = pending
        self._emit = emit

    @property
    def has_constants(self) -> bool:
        """Return whether the run has constants that a site may lack."""
        return bool(self._constants)

    @cached_property
    def _new_sites_need_constants(self) -> bool:
        """Return whether no site can rebuild the constants: then a new site is sent them at once, others on demand."""
        return bool(self._constants) and any(
            name.endswith(INITIAL_FACTOR_SUFFIX) for name in load_constants(self._constants)
        )

    def dispatch(self, nodes: Sequence[int], open_round: OpenRound) -> None:
        """Send the round's task to some nodes, and await their replies."""
        self._begin_downlinks(open_round)
        if not nodes:
            return
        for node in nodes:
            self.send(node, open_round)
            failpoint("server.asked")
        names = [self._pending[node].name for node in nodes]
        until = self._pending.seconds_for_new()
        self._emit(SitesAsked(round=open_round.number, sites=len(nodes), names=names, until_seconds=until))
        open_round.asked.update(nodes)

    def _begin_downlinks(self, open_round: OpenRound) -> None:
        self._downlinks = DownlinkBuilder(
            ledger=self._ledger,
            layout=self._template.adapter.layout,
            published=open_round.published,
            key=self._key,
            report=lambda message: self._emit(DamageRepaired(message=message)),
        )

    def tell_end(self, nodes: Sequence[int], open_round: OpenRound, ended: str) -> None:
        """Send some nodes the last version, and how the run has ended; their replies are awaited.

        Args:
            nodes: ids of the nodes.
            open_round: the round that is none any more, with the last version.
            ended: one of ``train_task.ENDS``.
        """
        self._begin_downlinks(open_round)
        for node in nodes:
            self.send(node, open_round, ended=ended)

    def send(
        self,
        node: int,
        open_round: OpenRound,
        *,
        with_constants: bool = False,
        is_resent: bool = False,
        ended: str = "",
    ) -> None:
        """Send the round's task to one node, and await its reply.

        Args:
            node: id of the node.
            open_round: the round, which ``dispatch`` was called for.
            with_constants: whether the constants of the adapter are sent, too, as the site has asked for.
            is_resent: whether the node has answered this task with a failure that sending again can heal.
            ended: how the run has ended; empty while it goes on.
        """
        config, published = self._config, open_round.published
        round_ = open_round.number
        version = published.version
        steps = open_round.steps
        rows = self._ledger.sites()
        known = next((row for row in rows if row.node == node), None)
        site = known.site if known is not None else ""
        merged = [known.merged] if known is not None else [row.merged for row in rows]
        task = build_task(
            config,
            self._template,
            round_,
            version,
            steps=steps,
            base_fingerprint=self._ledger.base_fingerprint,
            merged=tuple(m for m in merged if m),
            refused=tuple(self._ledger.refused(node, site)),
            site=site,
            ended=ended,
        )
        acked = known.acked if known is not None else None
        payload = b"" if ended and acked == version else self._downlinks.build(acked)  # who holds it needs no bytes
        if with_constants or (known is None and self._new_sites_need_constants):
            constants = encode_constants(self._constants, self._template.constants, run=config.run)
            payload = self._downlinks.sign(constants) + payload
        number = self._ledger.open_task(round_, version, node, site, self._pending.seconds_for_new())
        self._pending.add(
            PendingReply(
                node=node,
                site=site,
                round=round_,
                version=version,
                base_digest=published.digest,
                number=number,
                sent_at=self._pending.clock(),
                sent_bytes=len(payload),
                is_resent=is_resent,
            )
        )
        protocol = self._transport.send(node, task, payload, sign_task_message(self._key, task, payload))
        if protocol is not None:
            self._record_sent(round_, node, site, payload, protocol, kind="end" if ended else "state")

    def _record_sent(self, round_: int, node: int, site: str, payload: bytes, protocol: int, *, kind: str) -> None:
        """Record a message that Flower has taken, with the bytes that it takes besides its payload."""
        self._ledger.record_message(
            round_=round_,
            node=node,
            site=site,
            direction="down",
            kind=kind,
            payload=len(payload),
            digest=digest_of(payload).hex(),
            protocol=protocol,
        )
