"""Runs one round at a site: take the downlink, train, encode, commit. No networking in this file."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clients.signing import SiteIdentity
from clients.site import SiteConfig
from clients.state.baseline import Baseline
from clients.state.run_tensors import RunSnapshot, StreamedSnapshot
from clients.state.site_state import SiteState
from clients.training.job import DELTA, OUT_OF_MEMORY, STATE, Job
from clients.worker.rank_group import RankGroup
from fedcompress.adapters import adapter_digest, base_fingerprint, save_adapter
from fedcompress.adapters.constants import CONSTANTS
from fedcompress.adapters.folder import save_weights
from fedcompress.adapters.full import trains_base_weights
from fedcompress.chunks import TensorSlice, read_slices
from fedcompress.codecs import CodecSpec
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import IdentityError, MismatchError, TrainingError
from fedcompress.pipeline.coding import stream_update
from fedcompress.privacy import clip_factor
from fedcompress.storage.failpoints import failpoint
from fedcompress.storage.tensor_file import iterate_chunks, open_tensor_file
from fedcompress.types import Array, Layout, Tensors, l2_norm
from fedcompress.wire import Header, Kind, Limits, pack, unpack

LOW_MEMORY = 0.1  # share of the machine's memory; with less available, memory is short
MAX_DEATHS = 2  # deaths of ranks after which a round is given up
OnProgress = Callable[..., None]


@dataclass(frozen=True)
class Reply:
    """Holds what a site answers to a task.

    Args:
        payload: the envelope for the coordinator, signed.
        replayed: it came from the outbox, since the round was done before.
    """

    payload: bytes
    replayed: bool


class RoundRunner:
    """Runs rounds for one site, one at a time.

    Args:
        site: the site's settings.
        state: what the site must not lose.
        ranks: that train.
    """

    def __init__(self, site: SiteConfig, state: SiteState, ranks: RankGroup) -> None:
        self._site = site
        self._state = state
        self._ranks = ranks
        self._work = site.state_dir / "work"
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self._micro_batch = 0  # examples that memory has room for, once it was short
        self.model_loads = 0  # of the ranks that run now
        self._identity = SiteIdentity.load(site)
        self._fingerprint = base_fingerprint(site.model.path, site.state_dir / "fingerprint.json")

    def run(self, task: TrainTask, bundle: bytes, progress: OnProgress, signature: str = "") -> Reply:
        """Answer a task; from the outbox if this round was done before.

        Args:
            task: what the coordinator asks for.
            bundle: the envelopes that lead to the published state, one behind the other.
            progress: is told what happens.
            signature: of task and bundle, by the coordinator.

        Returns:
            The reply, which is in the outbox by then if it is an update; empty where the run has ended.

        Raises:
            IdentityError: the coordinator has not signed it, or not for this site, or it is an old one.
            WireError, MismatchError: the downlink does not fit.
            TrainingError: a rank failed.
            StateError: what is stored of the run is missing or changed.
        """
        self._check_identity(task, bundle, signature)
        self._check_base(task)
        for text in task.refused:
            progress(phase="refused", text=f"the coordinator refused an update of this site: {text}")
        snapshot = self._receive(task, bundle, progress)
        self._state.record_task(task)
        if task.ended:
            self._ranks.rest()
            progress(phase="ended", text=f"run {task.run}: {task.ended} at version {snapshot.version}")
            return Reply(b"", replayed=False)
        reply = self._state.find_reply(task.run, task.round, snapshot.digest) if task.steps else None
        if reply is not None:
            progress(phase="replay", text=f"round {task.round} was done before: answered from the outbox")
            return Reply(self._sign_again(task, reply), replayed=True)
        metrics = self._train(task, snapshot, progress)
        failpoint("site.trained")
        header = self._header(task, snapshot, metrics)
        if not task.steps:
            return Reply(self._identity.sign(pack(header, ())), replayed=False)
        return Reply(self._encode(task, snapshot, header, progress), replayed=False)

    def _receive(self, task: TrainTask, bundle: bytes, progress: OnProgress) -> RunSnapshot:
        """Bring state, outbox and residual to where the task begins."""
        layout = Layout.from_json(task.layout)
        on_disk = trains_base_weights(json.loads(task.adapter_config))
        snapshot = self._state.apply_downlink(task.run, layout, bundle, on_disk=on_disk)
        if snapshot.version != task.version:
            raise MismatchError("base-digest", f"version: {snapshot.version} is held: the task needs {task.version}")
        returned = self._state.reconcile_outbox(
            task.run,
            task.round,
            snapshot.digest,
            task.merged,
            is_named=bool(task.site),
            is_usable=lambda reply: _codec_of(reply) == str(CodecSpec.parse(task.codec)),
        )
        failpoint("site.settled")
        if returned:
            progress(phase="settle", text=f"{returned} unmerged update(s) returned to the residual")
        residual = self._state.residual(task.run, layout)  # it may have changed since
        return replace(snapshot, residual=residual, checked_digest=snapshot.digest)

    def _header(self, task: TrainTask, snapshot: RunSnapshot, metrics: dict[str, float]) -> Header:
        examples = int(metrics.pop("train_examples"))
        adapter = adapter_digest(json.loads(task.adapter_config))
        alone = Baseline.load(self._site.state_dir)
        if alone is not None:
            metrics |= alone.metrics(adapter=adapter.hex(), base=self._fingerprint.hex(), evaluated=metrics)
        return Header(
            kind=Kind.UPDATE if task.steps else Kind.REPORT,
            run=task.run,
            site=self._site.name,
            round=task.round,
            version=snapshot.version,
            base_digest=snapshot.digest,
            layout_digest=snapshot.layout.digest,
            base_fingerprint=self._fingerprint,
            adapter_digest=adapter,
            codec="",
            examples=examples,
            metrics=metrics,
        )

    def _check_identity(self, task: TrainTask, bundle: bytes, signature: str) -> None:
        """Refuse what is not the coordinator's, for another site, or older than what was answered."""
        self._identity.check(signature, task.to_json(), bundle)
        if task.site and task.site != self._site.name:
            raise IdentityError("other-site", f"task.site: {task.site}: this site is {self._site.name}")
        if self._identity.coordinator is not None:
            self._state.check_not_replayed(task.run, task.round, task.version, task.life)

    def _sign_again(self, task: TrainTask, reply: bytes) -> bytes:
        """Sign a stored reply with the key of now, which need not be the one that it was signed with."""
        signed = self._identity.sign(reply)
        if signed != reply:
            self._state.replace_reply(task.run, task.round, signed)
        return signed

    def _check_base(self, task: TrainTask) -> None:
        """Refuse before anything is computed if the base here is not the run's; ranks check the tokenizer."""
        here, wanted = self._fingerprint.hex(), task.base_fingerprint
        if wanted and here != wanted:
            path = self._site.model.path
            raise MismatchError("base-model", f"model.path: {path}: {here[:16]}: the run's base is {wanted[:16]}")

    def _train(self, task: TrainTask, snapshot: RunSnapshot, progress: OnProgress) -> dict[str, float]:
        """Return the metrics of rank 0; leaves the delta in the work folder."""
        shutil.rmtree(self._work / "trained", ignore_errors=True)
        self._publish(json.loads(task.adapter_config), snapshot)
        constants = self._state.constants(task.run, task.constants) if task.constants else None
        if constants is not None:
            (self._work / CONSTANTS).write_bytes(constants)
        job = Job(
            task=task,
            published=self._work / "published",
            constants=self._work / CONSTANTS if constants is not None else None,
            out=self._work / "trained",
            micro_batch=self._micro_batch or self._site.engine.micro_batch or task.batch_size,
            drop=self._must_drop_model(),
        )
        return self._run_until_done(job, progress)

    def _publish(self, config: dict[str, Any], snapshot: RunSnapshot) -> None:
        """Write what the ranks read: a PEFT folder, or a layout with the stream of the state under another name."""
        folder = self._work / "published"
        shutil.rmtree(folder, ignore_errors=True)
        match snapshot:
            case StreamedSnapshot(file=file):
                save_weights(folder, config, snapshot.layout)
                (folder / STATE).symlink_to(file.absolute())
            case _:
                save_adapter(folder, config, snapshot.layout, snapshot.state)

    def _must_drop_model(self) -> bool:
        """Return whether the model is not to stay in memory after this round."""
        import psutil

        memory = psutil.virtual_memory()
        short = memory.available < LOW_MEMORY * memory.total
        keep = self._site.engine.keep_model
        return keep == "never" or (keep == "pressure" and short)

    def _run_until_done(self, job: Job, progress: OnProgress) -> dict[str, float]:
        """Run a job; again with half the micro-batch if memory is short, and again if a rank dies.

        Raises:
            TrainingError: neither helps.
        """
        deaths = 0
        while True:
            try:
                return self._run_job(job, progress)
            except TrainingError as error:
                if error.code == OUT_OF_MEMORY and job.micro_batch > 1:
                    self._micro_batch = job.micro_batch // 2
                    job = replace(job, micro_batch=self._micro_batch)
                    progress(phase="recover", text=f"out of memory: micro-batch is now {job.micro_batch}: {error}")
                elif error.code == "rank-died" and deaths < MAX_DEATHS:
                    deaths += 1
                    progress(phase="recover", text=f"a rank died, all start afresh: {error}")
                else:
                    raise

    def _run_job(self, job: Job, progress: OnProgress) -> dict[str, float]:
        """Run a job on all ranks, and return the metrics of rank 0."""
        metrics: dict[str, float] = {}
        for report in self._ranks.run(job.to_json(), start_timeout=self._site.engine.start_timeout):
            if report.result_json and report.rank == 0:
                metrics = json.loads(report.result_json)
                self.model_loads = int(metrics.get("model_loads", 0))
            elif not report.result_json:
                note = report.progress
                progress(phase=note.phase, step=note.step, steps=note.steps, loss=note.loss, text=note.text)
        return metrics

    def _encode(self, task: TrainTask, snapshot: RunSnapshot, header: Header, progress: OnProgress) -> bytes:
        """Encode delta plus residual, and commit the envelope with the residual that is left; chunk by chunk."""
        started = time.monotonic()
        layout = snapshot.layout
        feedback = task.error_feedback
        codec = CodecSpec.parse(task.codec)
        delta = open_tensor_file(self._work / "trained" / DELTA, layout)
        factor = self._clip_factor(layout, delta)
        last = self._state.last_sent(task.run) if codec.uses_previous_update else None

        def read_target(slices: list[TensorSlice]) -> Tensors:
            values = read_slices(delta, slices)
            if factor != 1:
                values = {name: value * factor for name, value in values.items()}
            return feedback.target(values, read_slices(snapshot.residual, slices), task.round)

        with self._state.write_residual(task.run, layout, feedback.store) as residual:
            payload = stream_update(
                read_target,
                layout,
                codec,
                header,
                lambda slices, target, decoded: residual.add(slices, feedback.residual(target, decoded)),
                last=last,
            )
        payload = self._identity.sign(payload)
        self._state.commit(task.run, task.round, snapshot.digest, payload, residual.stored)
        seconds = time.monotonic() - started
        progress(phase="encode", text=f"{len(payload)} bytes in {seconds:.2f} s, committed to the outbox")
        return payload

    def _clip_factor(self, layout: Layout, delta: Mapping[str, Array]) -> np.float32:
        """Return what the delta is multiplied by, so that its norm is within the site's bound."""
        if not self._site.max_update_norm > 0:
            return np.float32(1)
        norm = l2_norm(value for _, values in iterate_chunks(layout, delta) for value in values.values())
        return clip_factor(norm, self._site.max_update_norm)


def _codec_of(reply: bytes) -> str:
    """Return the codec that a stored reply is in: after a change of settings it may be one that would be refused."""
    return unpack(reply, Limits(max_body=len(reply))).header.codec
