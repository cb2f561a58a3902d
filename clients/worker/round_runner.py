"""One round at a site: receive, train, encode, commit. No networking in this file."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clients.signing import SiteIdentity
from clients.site import SiteConfig
from clients.state.site_state import RunSnapshot, SiteState
from clients.training.job import OUT_OF_MEMORY, STATE, UPDATE, Job
from clients.worker.rank_group import RankGroup
from fedcompress.adapters import adapter_digest, base_fingerprint, load_adapter, save_adapter
from fedcompress.adapters.constants import CONSTANTS
from fedcompress.adapters.folder import save_weights
from fedcompress.adapters.full import trains_base_weights
from fedcompress.chunks import TensorSlice, read_slices
from fedcompress.codecs import CodecSpec
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError, IdentityError, MismatchError, TrainingError
from fedcompress.pipeline.updates import encode_update, stream_update
from fedcompress.privacy import clip_factor, clip_update
from fedcompress.storage.failpoints import failpoint
from fedcompress.storage.tensor_file import MAGIC, iterate_bytes, iterate_chunks, open_tensor_file
from fedcompress.types import Layout, Tensors, l2_norm, subtract
from fedcompress.wire import Header, Kind, Limits, pack, unpack

SCARCE = 0.1  # of the memory
MAX_DEATHS = 2  # of ranks, in one round
OnProgress = Callable[..., None]


@dataclass(frozen=True)
class Reply:
    """Bytes for the coordinator, and whether they came from the outbox."""

    payload: bytes
    replayed: bool


class RoundRunner:
    """Runs rounds for one site, one at a time."""

    def __init__(self, site: SiteConfig, session: SiteState, hub: RankGroup) -> None:
        self._site = site
        self._session = session
        self._hub = hub
        self._work = site.state_dir / "work"
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self._micro_batch = 0  # what memory has room for, once it was short
        self.model_loads = 0  # of the ranks that run now
        self._identity = SiteIdentity.load(site)
        self._fingerprint = base_fingerprint(site.model.path, site.state_dir / "fingerprint.json")

    def run(self, task: TrainTask, bundle: bytes, progress: OnProgress, signature: str = "") -> Reply:
        """The reply to ``task``; from the outbox if this round was done before.

        Raises:
            IdentityError: the coordinator has not signed it, or not for this site, or it is an old one.
            WireError, MismatchError: the downlink does not fit.
            TrainingError: a rank failed.
            StateError: the session is corrupt.
        """
        self._check_identity(task, bundle, signature)
        self._check_base(task)
        for text in task.refused:
            progress(phase="refused", text=f"the coordinator refused an update of this site: {text}")
        layout = Layout.from_json(task.layout)
        held = self._session.apply_downlink(
            task.run, layout, bundle, is_stream=trains_base_weights(json.loads(task.adapter_config))
        )
        if held.version != task.version:
            raise MismatchError("base-digest", f"version: {held.version} is held: the task needs {task.version}")
        base = held.digest
        returned = self._session.reconcile_outbox(task.run, task.round, base, task.merged, is_named=bool(task.site))
        if not self._is_asked_for(task, base):
            returned += self._session.reconcile_outbox(task.run, task.round, b"", task.merged, is_named=bool(task.site))
        failpoint("site.settled")
        if returned:
            progress(phase="settle", text=f"{returned} unmerged update(s) returned to the residual")
        held = replace(held, residual=self._session.residual(task.run, layout))  # may also have shrunk, or be lost
        stored = self._session.replay(task.run, task.round, base) if task.steps else None
        if stored is not None:
            progress(phase="replay", text=f"round {task.round} was done before: answered from the outbox")
            return Reply(self._resigned(task, stored), replayed=True)
        metrics = self._train(task, held, progress)
        failpoint("site.trained")
        examples = int(metrics.pop("train_examples"))
        header = Header(
            kind=Kind.UPDATE if task.steps else Kind.REPORT,
            run=task.run,
            site=self._site.name,
            round=task.round,
            version=held.version,
            base_digest=base,
            layout_digest=layout.digest,
            base_fingerprint=self._fingerprint,
            adapter_digest=adapter_digest(json.loads(task.adapter_config)),
            codec="",
            examples=examples,
            metrics=metrics,
        )
        if not task.steps:
            return Reply(self._identity.sign(pack(header, ())), replayed=False)
        return Reply(self._encode(task, held, header, progress), replayed=False)

    def _check_identity(self, task: TrainTask, bundle: bytes, signature: str) -> None:
        """Refuse what is not the coordinator's, for another site, or older than what was answered."""
        self._identity.check(signature, task.to_json(), bundle)
        if task.site and task.site != self._site.name:
            raise IdentityError("other-site", f"task.site: {task.site}: this site is {self._site.name}")
        if self._identity.coordinator is not None:
            self._session.check_not_replayed(task.run, task.round, task.version, task.life)

    def _is_asked_for(self, task: TrainTask, base: bytes) -> bool:
        """Not so a stored reply to this round in another codec, as after a change of settings: it would be refused."""
        stored = self._session.replay(task.run, task.round, base)
        if stored is None:
            return True
        return unpack(stored, Limits(max_body=len(stored))).header.codec == str(CodecSpec.parse(task.codec))

    def _resigned(self, task: TrainTask, stored: bytes) -> bytes:
        """A stored reply with the key of now, which need not be the one that it was signed with."""
        signed = self._identity.sign(stored)
        if signed != stored:
            self._session.replace(task.run, task.round, signed)
        return signed

    def _check_base(self, task: TrainTask) -> None:
        """Refuse before anything is computed if the base here is not the run's; ranks check the tokenizer."""
        here, wanted = self._fingerprint.hex(), task.base_fingerprint
        if wanted and here != wanted:
            path = self._site.model.path
            raise MismatchError("base-model", f"model.path: {path}: {here[:16]}: the run's base is {wanted[:16]}")

    def _train(self, task: TrainTask, held: RunSnapshot, progress: OnProgress) -> dict[str, float]:
        """Metrics of rank 0; leaves the trained tensors in the work folder."""
        shutil.rmtree(self._work / "trained", ignore_errors=True)
        config = json.loads(task.adapter_config)
        self._publish(config, held)
        constants = self._session.constants(task.run, task.constants) if task.constants else None
        if constants is not None:
            (self._work / CONSTANTS).write_bytes(constants)
        job = Job(
            task=task,
            published=self._work / "published",
            constants=self._work / CONSTANTS if constants is not None else None,
            out=self._work / "trained",
            micro_batch=self._micro_batch or self._site.engine.micro_batch or task.batch_size,
            drop=self._is_to_drop(),
        )
        return self._persist(job, progress)

    def _publish(self, config: dict[str, Any], held: RunSnapshot) -> None:
        """What the ranks read: a PEFT folder, or the file of a stream under another name."""
        folder = self._work / "published"
        shutil.rmtree(folder, ignore_errors=True)
        if held.file is None:
            save_adapter(folder, config, held.layout, held.state)
            return
        save_weights(folder, config, held.layout)
        (folder / STATE).symlink_to(held.file.absolute())

    def _is_to_drop(self) -> bool:
        """Whether the model is not to stay in memory after this round."""
        import psutil

        memory = psutil.virtual_memory()
        short = memory.available < SCARCE * memory.total
        keep = self._site.engine.keep_model
        return keep == "never" or (keep == "pressure" and short)

    def _persist(self, job: Job, progress: OnProgress) -> dict[str, float]:
        """Run a job; again with half the micro-batch if memory is short, and again if a rank dies.

        Raises:
            TrainingError: neither helps.
        """
        deaths = 0
        while True:
            try:
                return self._ask(job, progress)
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

    def _ask(self, job: Job, progress: OnProgress) -> dict[str, float]:
        """Metrics of rank 0."""
        metrics: dict[str, float] = {}
        for report in self._hub.run(job.to_json(), start_timeout=self._site.engine.start_timeout):
            if report.result_json and report.rank == 0:
                metrics = json.loads(report.result_json)
                self.model_loads = int(metrics.get("model_loads", 0))
            elif not report.result_json:
                note = report.progress
                progress(phase=note.phase, step=note.step, steps=note.steps, loss=note.loss, text=note.text)
        return metrics

    def _encode(self, task: TrainTask, held: RunSnapshot, header: Header, progress: OnProgress) -> bytes:
        """Delta plus residual to an envelope; commits outbox and residual."""
        started = time.monotonic()
        if held.is_stream:
            payload = encode_stream(self._session, self._site, task, header, held, self._work / "trained" / UPDATE)
            seconds = time.monotonic() - started
            progress(phase="encode", text=f"{len(payload)} bytes in {seconds:.2f} s, committed to the outbox")
            return payload
        trained = load_adapter(self._work / "trained").tensors
        delta = subtract({n: trained[n] for n in held.state}, held.state)
        if self._site.max_update_norm > 0:
            delta, _ = clip_update(delta, self._site.max_update_norm)
        feedback, codec = task.error_feedback, CodecSpec.parse(task.codec)
        target = feedback.target(delta, held.residual, task.round)
        last = self._session.last_sent(task.run) if codec.uses_previous_update else None
        payload, decoded = encode_update(target, held.layout, codec, header, last=last)
        payload = self._identity.sign(payload)
        rest = feedback.residual(target, decoded)
        self._session.commit(task.run, task.round, header.base_digest, payload, rest, store=feedback.store)
        seconds = time.monotonic() - started
        progress(phase="encode", text=f"{len(payload)} bytes in {seconds:.2f} s, committed to the outbox")
        return payload


def encode_stream(
    session: SiteState, site: SiteConfig, task: TrainTask, header: Header, held: RunSnapshot, file: Path
) -> bytes:
    """Delta plus residual to an envelope; commits outbox and residual.

    Args:
        session: of the site.
        site: for the bound on the update's norm.
        task: the round.
        header: of the reply.
        held: what the site holds.
        file: of the delta.

    Raises:
        ConfigError: the run wants a residual of fewer bits.
    """
    feedback, codec = task.error_feedback, CodecSpec.parse(task.codec)
    if feedback.store != "none":
        raise ConfigError("task.residual_store", feedback.store, "must be none where weights of the base are trained")
    delta = open_tensor_file(file, held.layout)
    scale = np.float32(1)
    if site.max_update_norm > 0:
        norms = [l2_norm(values.values()) for _, values in iterate_chunks(held.layout, delta)]
        scale = clip_factor(float(np.linalg.norm(norms)), site.max_update_norm)

    def read(pieces: list[TensorSlice]) -> Tensors:
        values = read_slices(delta, pieces)
        if scale != 1:
            values = {name: value * scale for name, value in values.items()}
        return feedback.target(values, read_slices(held.residual, pieces), task.round)

    with session.stream() as residual:
        residual.write(MAGIC)

        def keep(_: list[TensorSlice], target: Tensors, decoded: Tensors) -> None:
            for chunk in iterate_bytes(feedback.residual(target, decoded)):
                residual.write(chunk)

        payload = stream_update(read, held.layout, codec, header, keep)
    session.commit(task.run, task.round, header.base_digest, payload, residual)
    return payload
