"""The round loop, to be read from top to bottom.

A round: send the published state and a task to each chosen site; collect replies until all are there, enough are,
or the deadline; admit or refuse each; merge; step; compress; commit.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedcompress.adapters import load_template
from fedcompress.adapters.constants import CONSTANTS, INITIAL_FACTOR_SUFFIX, load_constants
from fedcompress.adapters.full.export import check_run, export_run
from fedcompress.config.run_config import RunConfig
from fedcompress.errors import TrainingError
from fedcompress.pipeline.states import encode_constants, encode_snapshot
from fedcompress.storage.failpoints import failpoint
from fedcompress.storage.tensor_file import ZeroTensors
from fedcompress.types import Tensors, state_digest
from fedcompress.wire import digest_of
from server.ledger.ledger import Ledger, MergedRow, PublishedState
from server.ledger.quality import Quality, pool_quality
from server.round.aggregation import AcceptedUpdate, aggregate_round
from server.round.downlink import DownlinkBuilder
from server.round.intake import ReplyIntake
from server.round.norm_bound import NORM_HISTORY, compute_norm_bound
from server.round.participants import Participants
from server.round.signatures import load_coordinator_key, sign_task_message
from server.round.tasks import PendingReply, build_task
from server.state_dir import clear_stop, stop_requested
from server.transport.base import Incoming, Transport

OTHER_SITE = "other-site"
CONSTANTS_LACK, UNREADABLE = "constants", "unreadable"
# Sending again, or more, heals these.
RESYNC = ("base-digest", "result-digest", "StateError", CONSTANTS_LACK, OTHER_SITE, UNREADABLE)
REMIND = 30.0  # seconds between two words about who is awaited
AGAIN = 5.0  # seconds; sites that failed are asked again after twice as many, then four times, ...
TIMES = 4  # that they are, if there would be enough of them


class Coordinator:
    """One run of a federation."""

    def __init__(
        self,
        config: RunConfig,
        transport: Transport,
        emit: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._transport = transport
        self._emit = emit
        self._clock = clock
        folder = Path(config.initial_adapter)
        template = load_template(folder)
        self._template = replace(template, adapter=replace(template.adapter, tensors={}))  # not needed after the start
        self._constants = (folder / CONSTANTS).read_bytes() if template.constants else b""
        self.layout = template.adapter.layout
        self._adapter_config = dict(template.adapter.config)
        check_run(template, config.codec, config.downlink_codec)
        self._key = load_coordinator_key(config.state_path, required=config.require_signatures)
        self.ledger = Ledger(config.state_path, config.run, retention=config.retention)
        fingerprint = config.base_fingerprint or template.base_fingerprint
        self.ledger.begin(self.layout, json.dumps(self._adapter_config, sort_keys=True), fingerprint)
        self.ledger.close_tasks("lost")  # of a process that was killed
        self._updates = config.state_path / "updates" / config.run  # decoded ones of the open round
        shutil.rmtree(self._updates, ignore_errors=True)
        self._open: dict[int, PendingReply] = {}  # who is awaited, by node
        self._early: list[Incoming] = []  # replies that came while nobody looked
        self._deadline = float("inf")  # of those that are asked now, on the clock
        self._roster = Participants(config, emit)
        about = (config, self.layout, self._adapter_config, self.ledger, self._roster, emit)
        self._reception = ReplyIntake(*about, self._updates)
        published = self.ledger.published(self.layout)
        self._published = published or self._publish_start(dict(template.adapter.tensors))

    @cached_property
    def _constants_are_needed(self) -> bool:
        """Whether no site can rebuild them: a new site is sent them at once, others when they ask."""
        return bool(self._constants) and any(
            name.endswith(INITIAL_FACTOR_SUFFIX) for name in load_constants(self._constants)
        )

    def _publish_start(self, tensors: Tensors) -> PublishedState:
        """Commit version 0: the initial adapter, sent as its seed if the seed rebuilds it."""
        config, digest = self._config, state_digest(self.layout, tensors)
        envelope = encode_snapshot(tensors, self.layout, run=config.run, version=0, init_seed=config.seed)
        with self.ledger.transaction():
            self.ledger.publish(0, digest, envelope, tensors, ZeroTensors(self.layout))
        start = self.ledger.published(self.layout)
        assert start is not None
        return start

    def run(self) -> Path:
        """All rounds that are not done yet, a last evaluation, and the export; less if it is asked to stop.

        Returns:
            The exported PEFT folder.

        Raises:
            TrainingError: no site came, or none could train.
        """
        first = self.ledger.rounds_done + 1
        for message in self._config.warnings:
            self._emit({"event": "warning", "message": message})
        for message in self.ledger.notes:
            self._recovered(message)
        at = {"version": self._published.version, "digest": self._published.digest.hex()}
        about = {"parameters": self.layout.numel, "require_signatures": self._config.require_signatures}
        self._emit({"event": "start", "first_round": first, "rounds": self._config.rounds, **about, **at})
        for round_ in range(first, self._config.rounds + 1):
            if stop_requested(self._config.state_path):
                return self._end("stopped")
            self._round(round_)
        self._evaluate(self._config.rounds + 1)
        failpoint("server.before-export")
        return self._end("finished")

    def _end(self, how: str) -> Path:
        folder = self.export(self._config.state_path / "adapter")
        self._emit({"event": how, "adapter": str(folder), **self._totals()})
        clear_stop(self._config.state_path)  # not before: killed here, the run must not go on
        return folder

    def _round(self, round_: int) -> None:
        started = self._clock()
        failpoint("server.round-begun")
        self._give_up(lambda asked: self._age(asked) > self._config.max_staleness, "stale", round_ - 1)
        asked, admitted = self._gather(round_)
        failpoint("server.merge")
        self.ledger.check(self._published)
        published, envelope = aggregate_round(
            self._config, self.layout, self._published, admitted, round_, blobs=self.ledger.blobs
        )
        seconds = self._clock() - started
        merged = [MergedRow(a.site, a.envelope.digest.hex(), a.version, a.norm) for a in admitted]
        with self.ledger.transaction():
            self.ledger.publish(
                published.version, published.digest, envelope, published.state, published.residual, published.outer
            )
            self.ledger.end_round(round_, published.version, asked, merged, seconds)
        failpoint("server.after-commit")
        self.ledger.copy()
        self.ledger.collect_garbage()
        shutil.rmtree(self._updates, ignore_errors=True)
        stale = sum(a.version < self._published.version for a in admitted)
        self._published = published
        at = {"version": published.version, "digest": published.digest.hex()}
        counts = {"asked": asked, "merged": len(merged), "late": stale, "awaited": len(self._open)}
        sizes = {f"{way}link_bytes": self.ledger.payload_bytes(way, round_)[0] for way in ("up", "down")}
        facts = {**counts, **sizes, "updates": [f"{m.site}:{m.digest}" for m in merged]}
        self._emit({"event": "round", "round": round_, **at, **facts, "seconds": round(seconds, 3)})

    def _gather(self, round_: int) -> tuple[int, list[AcceptedUpdate]]:
        """How many were asked, and at least a quorum of updates; emits the quality of the published state.

        Raises:
            TrainingError: there is no quorum after ``patience`` more deadlines, or enough sites are there and all fail.
        """
        config, admitted, asked = self._config, list[AcceptedUpdate](), set[int]()
        self._wait_for_nodes()
        for attempt in range(config.patience + 1):
            admitted, is_over = self._collect_quorum(round_, admitted, asked)
            if len(admitted) >= config.quorum:
                break
            text = f"round {round_}: {len(admitted)} updates admitted: the quorum is {config.quorum}"
            if is_over or attempt == config.patience:
                raise TrainingError("no-quorum", text)
            self.ledger.extend_tasks(config.round_timeout)
            self._emit({"event": "warning", "message": f"{text}: waiting on, and asking who is free"})
        if config.late == "return":
            self._give_up(lambda a: True, "deadline" if self._clock() >= self._deadline else "surplus", round_)
        by_site = sorted(admitted, key=lambda a: a.site)  # float sums must not depend on arrival
        fresh = [a for a in by_site if a.version == self._published.version]
        self._emit_quality(pool_quality(a.envelope.header.metrics for a in fresh))
        return len(asked), admitted

    def _collect_quorum(
        self, round_: int, admitted: list[AcceptedUpdate], asked: set[int]
    ) -> tuple[list[AcceptedUpdate], bool]:
        """Ask, and collect until there is a quorum or the time is over; whoever joins or has failed is asked as well.

        Returns:
            Updates, and whether enough sites for a quorum are there and have failed again and again.
        """
        config, self._deadline = self._config, float("inf")
        while True:
            there = set(self._transport.nodes())
            chosen = self._choose(round_, [a.node for a in admitted])
            self._dispatch(chosen, round_, steps=config.steps)
            asked.update(chosen)
            self._deadline = min(self._deadline, self._clock() + config.round_timeout)
            self._collect(round_, admitted, steps=config.steps)
            admitted = self._drop_outliers(round_, admitted)
            if len(admitted) >= config.quorum or self._clock() >= self._deadline:
                return admitted, False
            nodes, done = set(self._transport.nodes()), {a.node for a in admitted}
            out = done | self._roster.answered_elsewhere(round_) | self._open.keys()
            failures = [self._roster.failures(node, round_) for node in nodes - out]
            if failures and min(failures) >= TIMES and len(nodes - out | done) >= config.quorum and not self._open:
                return admitted, True
            times = min((self._roster.failures(node, round_) for node in (nodes | {*chosen}) - out), default=None)
            pause = float("inf") if times is None else AGAIN * 2 ** min(times, 6)
            self._wait_for_retry(round_, len(admitted), there, min(self._deadline, self._clock() + pause))
            if self._clock() >= self._deadline:
                return admitted, False

    def _wait_for_retry(self, round_: int, merged: int, nodes: set[int], until: float) -> None:
        """Nobody is awaited, without a quorum: wait for another site, or until those that failed are asked again."""
        facts = {"updates": merged, "needed": self._config.quorum, "left_seconds": round(until - self._clock())}
        self._emit({"event": "lingering", "round": round_, **facts})
        while (rest := until - self._clock()) > 0 and not self._early and set(self._transport.nodes()) <= nodes:
            self._early += self._transport.receive(min(rest, 1.0))

    def _evaluate(self, round_: int) -> None:
        """Ask all for the quality of the last version; nobody is waited for beyond the deadline."""
        self._give_up(lambda asked: True, "finished", round_)
        self._deadline = float("inf")
        self._dispatch(self._wait_for_nodes(), round_, steps=0)
        reports: list[AcceptedUpdate] = []
        self._deadline = self._clock() + self._config.round_timeout
        self._collect(round_, reports, steps=0)
        self._give_up(lambda asked: True, "deadline", round_)
        by_site = sorted(reports, key=lambda a: a.site)
        self._emit_quality(pool_quality(a.envelope.header.metrics for a in by_site))

    def _choose(self, round_: int, answered: Sequence[int]) -> list[int]:
        """Nodes to ask, of those that are not awaited and have not answered."""
        done = {*answered, *self._open} | self._roster.answered_elsewhere(round_)
        free = [node for node in self._transport.nodes() if node not in done]
        return self._roster.choose(free, len(answered), round_, self.ledger.sites())

    def _dispatch(self, nodes: Sequence[int], round_: int, *, steps: int) -> None:
        kept, key = self._published, self._key
        self._downlinks = DownlinkBuilder(self.ledger, self.layout, kept, key, self._recovered)
        if not nodes:
            return
        for node in nodes:
            self._send(node, round_, steps)
            failpoint("server.asked")
        names = [self._open[node].site or str(node) for node in nodes]
        facts = {"sites": len(nodes), "names": names, "until_seconds": self._left()}
        self._emit({"event": "asked", "round": round_, **facts})

    def _left(self) -> float:
        """Seconds for which who is asked now is awaited."""
        return min(self._config.round_timeout, self._deadline - self._clock())

    def _collect(self, round_: int, admitted: list[AcceptedUpdate], *, steps: int) -> None:
        """Take replies until enough updates are there, nobody is awaited, or the time is over."""
        enough = self._config.buffer or self._config.sites_per_round
        said, early, self._early = self._clock(), self._early, []
        for reply in early:
            self._handle_reply(round_, reply, admitted, steps)
        while (left := self._deadline - self._clock()) > 0:
            awaited = [a for a in self._open.values() if a.round == round_ or self._config.buffer]
            if not awaited or (steps and 0 < enough <= len(admitted)):
                break
            if self._clock() - said >= REMIND:
                said = self._clock()
                names = [a.site or str(a.node) for a in awaited]
                self._emit({"event": "awaiting", "round": round_, "names": names, "left_seconds": round(left)})
            for reply in self._transport.receive(min(left, 1.0)):
                failpoint("server.reply")
                self._handle_reply(round_, reply, admitted, steps)

    def _age(self, asked: PendingReply) -> int:
        return self._published.version - asked.version

    def _give_up(self, is_meant: Callable[[PendingReply], bool], outcome: str, last: int) -> None:
        """After a last round, wait no longer for some; what they send is not taken, and returns to their residuals."""
        gone = [a for a in self._open.values() if is_meant(a)]
        self._transport.forget([a.node for a in gone])
        for asked in gone:
            del self._open[asked.node]
            self._roster.record_no_reply(asked.node, last)
            self.ledger.close_task(asked.number, outcome)
            if outcome in ("deadline", "stale"):
                waited = f"no reply within {self._clock() - asked.at:.0f} s, {self._age(asked)} versions later"
                silent = Incoming(asked.node, {"site": asked.site}, b"")
                self._reception.refuse(asked.round, silent, outcome, waited)

    def _handle_reply(self, round_: int, reply: Incoming, admitted: list[AcceptedUpdate], steps: int) -> None:
        take, now = self._reception, self._clock()
        if reply.late:
            self._roster.record_reply(reply.node, late=True)
            take.record_bytes(round_, reply, "late")
            return
        asked = self._open.pop(reply.node, None)
        if asked is None:
            take.refuse(round_, reply, "unasked", "a reply that nobody awaits")
            return
        self._roster.record_reply(reply.node)
        if reply.error and reply.node in self._transport.nodes():  # it was not the connection that was lost
            self._roster.record_failure(reply.node, round_)
        code = str(reply.status.get("code", ""))
        if code in RESYNC and not asked.resent and not reply.error:
            take.record_bytes(asked.round, reply, "failure")
            take.refuse(round_, reply, code, str(reply.status.get("message", "")))
            self.ledger.close_task(asked.number, "resent")
            if code not in (CONSTANTS_LACK, UNREADABLE):
                self.ledger.forget(reply.node, is_other=code == OTHER_SITE)
            self._send(reply.node, round_, steps, constants=code == CONSTANTS_LACK)
            self._open[reply.node].resent = True
            return
        update = take.admit(asked, reply, {a.site for a in admitted}, steps, self._age(asked), now)
        site = update.site if update is not None else ""
        self.ledger.close_task(asked.number, "refused" if update is None else "admitted", site)
        if update is not None:
            admitted.append(update)
            failpoint("server.admitted")

    def _drop_outliers(self, round_: int, admitted: list[AcceptedUpdate]) -> list[AcceptedUpdate]:
        """Without updates that are far longer than the others."""
        bound = compute_norm_bound(self._config.norm_bound, [a.norm for a in admitted], self.ledger.norms(NORM_HISTORY))
        for update in admitted:
            if update.norm > bound:
                reply = Incoming(update.node, {"site": update.site}, b"")
                self._roster.record_refusal(update.node, round_)
                self._reception.refuse(round_, reply, "norm", f"norm: {update.norm:.4g}: must be at most {bound:.4g}")
            else:
                self._roster.record_admitted(update.node)
        return [a for a in admitted if a.norm <= bound]

    def _wait_for_nodes(self) -> list[int]:
        """Nodes, once at least ``min_sites`` are connected; says who is awaited until when."""
        deadline, said = self._clock() + self._config.join_timeout, -1
        while True:
            nodes = self._transport.nodes()
            if len(nodes) >= self._config.min_sites:
                return nodes
            if self._clock() > deadline:
                raise TrainingError(
                    "no-sites",
                    f"min-sites: {len(nodes)} connected: {self._config.min_sites} needed "
                    f"within join-timeout, {self._config.join_timeout:.0f} s",
                )
            if len(nodes) != said:
                said = len(nodes)
                self._emit({"event": "waiting", "sites": said, "needed": self._config.min_sites})
            self._early += self._transport.receive(0.2)

    def _send(self, node: int, round_: int, steps: int, *, constants: bool = False) -> None:
        rows = self.ledger.sites()
        known = next((r for r in rows if r.node == node), None)
        site = known.site if known is not None else ""
        merged = [known.merged] if known is not None else [r.merged for r in rows]
        config, version = self._config, self._published.version
        task = build_task(
            config,
            self._template,
            round_,
            version,
            steps=steps,
            base_fingerprint=self.ledger.base_fingerprint,
            merged=tuple(m for m in merged if m),
            refused=tuple(self.ledger.refused(node, site)),
            site=site,
        )
        payload = self._downlinks.build(known.acked if known is not None else None)
        if constants or (known is None and self._constants_are_needed):
            constant = encode_constants(self._constants, self._template.constants, run=config.run)
            payload = self._downlinks.signed(constant) + payload
        number = self.ledger.open_task(round_, version, node, site, self._left())
        digest, at = self._published.digest, self._clock()
        self._open[node] = PendingReply(node, site, round_, version, digest, number, at, len(payload))
        protocol = self._transport.send(node, task, payload, sign_task_message(self._key, task, payload))
        if protocol is not None:
            name = digest_of(payload).hex()
            self.ledger.record_message(round_, node, site, "down", "state", len(payload), name, protocol)

    def _recovered(self, message: str) -> None:
        self._emit({"event": "recovered", "message": message})

    def _emit_quality(self, quality: Quality | None) -> None:
        if quality is not None:
            self._emit({"event": "quality", "version": self._published.version, **quality.facts})

    def _totals(self) -> dict[str, Any]:
        counts = {way: self.ledger.payload_bytes(way) for way in ("up", "down")}
        return {way: {"payload_bytes": size, "messages": number} for way, (size, number) in counts.items()}

    def export(self, folder: Path) -> Path:
        """Write the published state as a stock PEFT folder, or as a model."""
        constants = load_constants(self._constants) if self._constants else {}
        export_run(folder, self._template, self._published.state, constants)
        return folder
