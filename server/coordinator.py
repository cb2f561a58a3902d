"""The coordinator runs a federation from its start version to the export; a round is in ``round/round.py``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcompress.adapters import Template, load_template
from fedcompress.adapters.constants import CONSTANTS, load_constants
from fedcompress.adapters.full.export import check_run, export_run
from fedcompress.adapters.positions import check_length
from fedcompress.config.run_config import RunConfig
from fedcompress.pipeline.states import encode_snapshot
from fedcompress.storage.failpoints import failpoint
from fedcompress.storage.tensor_file import ZeroTensors
from fedcompress.types import Layout, Tensors, state_digest
from server.events import (
    DamageRepaired,
    Event,
    PayloadTotal,
    RunExported,
    RunFinished,
    RunStarted,
    RunStopped,
    WarningIssued,
)
from server.exported import gather_facts
from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from server.ledger.versions import PublishedState
from server.round.dispatch import Dispatcher
from server.round.ending import tell_end
from server.round.evaluation import evaluate_last_version
from server.round.intake import ReplyIntake
from server.round.participants import Participants
from server.round.pending import PendingReplies
from server.round.round import RoundLoop
from server.round.signatures import load_coordinator_key
from server.state_dir import clear_stop, stop_requested
from server.transport.base import Transport


class Coordinator:
    """Runs one federation, from where an earlier process of it has stopped.

    Args:
        config: of the run.
        transport: to the nodes.
        emit: takes every event as its JSON object, see ``server/events.py``.
        clock: seconds, monotonic.

    Attributes:
        layout: of the adapter.
        ledger: what was published, sent, received, merged and refused.

    Raises:
        ConfigError: rule, codecs or server optimizer do not go with the adapter, or a key that is required is absent.
        MismatchError: the run was begun with another adapter or base model.
        StateError: the ledger is damaged, and there is no good copy.
    """

    def __init__(
        self,
        config: RunConfig,
        transport: Transport,
        emit: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._emit_dict = emit
        folder = Path(config.initial_adapter)
        template = load_template(folder)
        # The tensors are needed for the start version only.
        self._template = replace(template, adapter=replace(template.adapter, tensors={}))
        self._constants = (folder / CONSTANTS).read_bytes() if template.constants else b""
        self.layout: Layout = template.adapter.layout
        check_length(config.max_length, template.positions, "max-length")
        check_run(template, config.codec, config.downlink_codec)
        key = load_coordinator_key(config.state_path, required=config.require_signatures)
        self.ledger = self._open_ledger(template)
        participants = Participants(config, self._emit)
        self._participants = participants
        self._transport = transport
        self._pending = PendingReplies(config=config, transport=transport, emit=self._emit, clock=clock)
        self._dispatcher = Dispatcher(
            config=config,
            template=self._template,
            constants=self._constants,
            key=key,
            ledger=self.ledger,
            transport=transport,
            pending=self._pending,
            emit=self._emit,
        )
        self._intake = ReplyIntake(
            config=config,
            template=self._template,
            ledger=self.ledger,
            transport=transport,
            participants=participants,
            pending=self._pending,
            dispatcher=self._dispatcher,
            emit=self._emit,
            updates=config.state_path / "updates" / config.run,
        )
        self._intake.discard_updates()
        published = self.ledger.published(self.layout) or self._publish_start(dict(template.adapter.tensors))
        self._rounds = RoundLoop(
            config=config,
            layout=self.layout,
            ledger=self.ledger,
            transport=transport,
            participants=participants,
            pending=self._pending,
            dispatcher=self._dispatcher,
            intake=self._intake,
            published=published,
            emit=self._emit,
        )

    @property
    def published(self) -> PublishedState:
        """Return the version that was published last."""
        return self._rounds.published

    def _emit(self, event: Event) -> None:
        self._emit_dict(event.to_dict())

    def _open_ledger(self, template: Template) -> Ledger:
        """Open the ledger and begin the run in it, or go on with it."""
        config = self._config
        ledger = Ledger(config.state_path, config.run, retention=config.retention)
        adapter_config = json.dumps(dict(template.adapter.config), sort_keys=True)
        ledger.begin(self.layout, adapter_config, config.base_fingerprint or template.base_fingerprint)
        ledger.close_tasks("lost")  # of a process that was killed
        return ledger

    def _publish_start(self, tensors: Tensors) -> PublishedState:
        """Commit version 0: the initial adapter, sent as its seed if the seed rebuilds it."""
        config = self._config
        digest = state_digest(self.layout, tensors)
        envelope = encode_snapshot(tensors, self.layout, run=config.run, version=0, init_seed=config.seed)
        with self.ledger.transaction():
            self.ledger.publish(
                0,
                digest=digest,
                envelope=envelope,
                state=tensors,
                residual=ZeroTensors(self.layout),
            )
        start = self.ledger.published(self.layout)
        assert start is not None
        return start

    def run(self) -> Path:
        """Run all rounds that are not done yet, a last evaluation, and the export; or less if a stop is requested.

        Returns:
            The exported PEFT folder.

        Raises:
            TrainingError: no site came, or none could train.
        """
        first_round = self.ledger.rounds_done + 1
        self._emit_start(first_round)
        for number in range(first_round, self._config.rounds + 1):
            if stop_requested(self._config.state_path):
                return self._end(RunStopped, "stopped", number)
            self._rounds.run(number)
        evaluate_last_version(
            self._config.rounds + 1,
            self.published,
            pending=self._pending,
            dispatcher=self._dispatcher,
            intake=self._intake,
            emit=self._emit,
        )
        failpoint("server.before-export")
        return self._end(RunFinished, "finished", self._config.rounds + 1)

    def _emit_start(self, first_round: int) -> None:
        config, published = self._config, self.published
        for message in config.warnings:
            self._emit(WarningIssued(message=message))
        for message in self.ledger.notes:
            self._emit(DamageRepaired(message=message))
        self._emit(
            RunStarted(
                first_round=first_round,
                rounds=config.rounds,
                parameters=self.layout.numel,
                require_signatures=config.require_signatures,
                version=published.version,
                digest=published.digest.hex(),
            )
        )

    def _end(self, event_type: type[RunExported], ended: str, number: int) -> Path:
        folder = self.export(self._config.state_path / "adapter")
        tell_end(
            ended,
            number,
            self.published,
            transport=self._transport,
            participants=self._participants,
            pending=self._pending,
            dispatcher=self._dispatcher,
            ledger=self.ledger,
            emit=self._emit,
        )
        self._emit(event_type(adapter=str(folder), up=self._total_payload("up"), down=self._total_payload("down")))
        clear_stop(self._config.state_path)  # not before: killed here, the run must not go on
        return folder

    def _total_payload(self, direction: str) -> PayloadTotal:
        payload_bytes, messages = self.ledger.payload_bytes(direction)
        return PayloadTotal(payload_bytes=payload_bytes, messages=messages)

    def export(self, folder: Path) -> Path:
        """Write the published state as a stock PEFT folder, or as a model, with its card, and return that folder."""
        constants = load_constants(self._constants) if self._constants else {}
        config, published = self._config, self.published
        settings = {"codec": config.codec, "rule": config.rule}
        with LedgerReader(config.state_path) as reader:
            facts = gather_facts(reader, config.run, published.version, settings)
        export_run(folder, self._template, published.state, constants, facts)
        return folder
