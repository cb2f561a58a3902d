"""``fedcompress site train --local`` does the run's training on this site's rows alone, as a baseline.

A worker of its own, on a state folder of its own, is asked as the coordinator would ask it, and its result is the
published state of the next round. Nothing is sent, compressed or clipped to ``privacy.max_update_norm``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clients import worker_client
from clients.commands.common import read_worker_status, site_path
from clients.runtime.logs import log_file
from clients.runtime.paths import log_dir, make_state_dir, socket_path
from clients.site import SiteConfig
from clients.state.baseline import Baseline
from clients.training.job import DELTA
from fedcompress.adapters import adapter_digest, base_fingerprint
from fedcompress.adapters.card import RunFacts
from fedcompress.adapters.constants import CONSTANTS, load_constants
from fedcompress.adapters.full.export import export_run
from fedcompress.adapters.template import Template, load_template
from fedcompress.config.train_task import TrainTask
from fedcompress.config.training_options import TrainingOptions
from fedcompress.errors import ConfigError, ProcessError
from fedcompress.formatting import duration
from fedcompress.pipeline.states import encode_constants, encode_snapshot
from fedcompress.proto.v1 import worker_pb2
from fedcompress.runtime.process_group import wait_until
from fedcompress.runtime.supervision import end_process
from fedcompress.storage.locks import hold
from fedcompress.storage.tensor_file import open_tensor_file
from fedcompress.types import Tensors, add
from fedcompress.wire import Limits, unpack

RUN = "local"  # name of the run that the worker is told
START_TIMEOUT = 60.0  # seconds until the worker answers
STOP_TIMEOUT = 20.0  # seconds that the worker has to end
Metrics = dict[str, float]
OnNote = Callable[[int, worker_pb2.Progress], None]


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Holds what can be set from the command line; what the command does not offer has its default."""

    site: str
    template: str
    out: str
    local: bool = False
    rounds: int = 1
    steps: int = 100
    optimizer_state: str = "keep"
    codec: str = "none"
    as_json: bool = False

    def __post_init__(self) -> None:
        if not self.local:
            raise ConfigError("--local", False, "must be said: only training without a coordinator is started by hand")
        for name in ("rounds", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}", getattr(self, name), "must be at least 1")
        # The other training options are checked by the task that is made of them.


def run(options: Options) -> int:
    """Train, evaluate before and after, and write the adapter; return 0.

    Raises:
        ConfigError: an option, site.toml or the template is wrong.
        LockedError: another local training runs on this site.
        TrainingError: it failed.
    """
    site_file = site_path(options.site)
    site, template = SiteConfig.load(site_file), load_template(Path(options.template))
    private = replace(site, state_dir=site.state_dir / "local")
    build_local_task(options, template, 1, options.steps)  # checks the options before anything starts
    began = time.monotonic()
    make_state_dir(site.state_dir)  # its folder, too, is private
    lock = hold(private.state_dir / "train.lock", f"site {site.name}: trains already, with pid")
    with lock, _worker(site_file, private), View(options) as view:
        metrics_by_round, state = _rounds(options, template, site_file, private, view.note)
    constants = _constants(options, template)
    out = Path(options.out).absolute()
    shutil.rmtree(private.state_dir / "session", ignore_errors=True)
    after = quality(metrics_by_round[-1])
    steps = int(sum(metrics.get("steps_done", options.steps) for metrics in metrics_by_round[:-1]))
    Baseline(
        adapter=adapter_digest(dict(template.adapter.config)).hex(),
        base=base_fingerprint(site.model.path, site.state_dir / "fingerprint.json").hex(),
        steps=steps,
        correct=metrics_by_round[-1]["eval_correct"],
        predictions=metrics_by_round[-1]["eval_examples"],
        loss=after["loss"],
    ).save(site.state_dir)
    facts = RunFacts(run=RUN, version=options.rounds, sites=1, accuracy=after["accuracy"], loss=after["loss"])
    export_run(out, template, state, load_constants(constants) if constants else {}, facts)
    result = {
        "site": site.name,
        "rounds": options.rounds,
        "steps": steps,
        "before": quality(metrics_by_round[0]),
        "after": after,
        "by_round": [quality(metrics) for metrics in metrics_by_round],
        "train_loss": [metrics["train_loss"] for metrics in metrics_by_round[:-1]],
        "train_examples": int(metrics_by_round[0]["examples"]),
        "seconds": round(time.monotonic() - began, 2),
        "adapter_dir": str(out),
    }
    _print(result, options.as_json)
    return 0


def build_local_task(options: Options, template: Template, round_: int, steps: int) -> TrainTask:
    """Build the task that a coordinator would send for a round with these options.

    Args:
        options: of the command; what it does not offer is as a run has it by default.
        template: what the training starts from.
        round_: number of the round, from 1.
        steps: optimizer steps; 0 lets the worker only evaluate.

    Returns:
        The task, in which nothing is compressed.

    Raises:
        ConfigError: an option is out of range.
    """
    return TrainTask.for_round(
        options,
        template,
        run=RUN,
        round_=round_,
        version=round_ - 1,
        steps=steps,
    )


def _constants(options: Options, template: Template) -> bytes:
    """Return the file of the template's constants; empty if it has none."""
    return (Path(options.template) / CONSTANTS).read_bytes() if template.constants else b""


def _rounds(
    options: Options, template: Template, site_file: Path, site: SiteConfig, note: OnNote
) -> tuple[list[Metrics], Tensors]:
    """Run all rounds, and one more that only evaluates.

    Args:
        options: from the command line.
        template: of the run.
        site_file: the site.toml.
        site: what it says, with the state folder of local training.
        note: takes a round's number and a progress note.

    Returns:
        The metrics of each round, and the trained state.
    """
    layout = template.adapter.layout
    state = template.adapter.tensors
    metrics_by_round = []
    constants = _constants(options, template)
    # the first downlink brings the constants; each further one says that the update before it was merged
    prefix = encode_constants(constants, template.constants, run=RUN) if constants else b""
    merged: tuple[str, ...] = ()
    for round_ in range(1, options.rounds + 2):
        steps = options.steps if round_ <= options.rounds else 0
        task = build_local_task(options, template, round_, steps)
        bundle = encode_snapshot(state, layout, run=RUN, version=round_ - 1)
        payload, _ = worker_client.run_round(
            site_file,
            site,
            replace(task, merged=merged),
            prefix + bundle,
            lambda line: None,
            lambda progress, round_=round_: note(round_, progress),  # type: ignore[misc]
        )
        envelope = unpack(payload, Limits.for_numel(layout.numel))
        metrics_by_round.append({**envelope.header.metrics, "examples": float(envelope.header.examples)})
        merged = (envelope.digest.hex(),)
        prefix = b""
        if steps:  # as the ranks left it, before the clipping of what would be sent
            state = add(state, open_tensor_file(site.state_dir / "work" / "trained" / DELTA, layout))
    return metrics_by_round, state


@contextmanager
def _worker(site_file: Path, site: SiteConfig) -> Iterator[None]:
    """Run a fresh worker on a private state folder during the block."""
    shutil.rmtree(site.state_dir / "session", ignore_errors=True)
    process = worker_client.start_worker(site_file, site, os.getpid(), local=True)

    def alive() -> None:
        if process.poll() is not None:
            raise ProcessError(
                f"worker: did not start (exit {process.poll()}): see {log_file(log_dir(site.state_dir))}"
            )

    try:
        address = socket_path(site.state_dir)
        wait_until(
            lambda: address.exists() and read_worker_status(site.state_dir) is not None,
            timeout=START_TIMEOUT,
            what="worker",
            alive=alive,
        )
        yield
    finally:
        end_process(process.pid, grace=STOP_TIMEOUT)
        process.wait()


def quality(metrics: Metrics) -> dict[str, float]:
    """Return a round's held-out figures: loss in nats and accuracy of a prediction, and the number of predictions."""
    count = max(1.0, metrics["eval_examples"])
    return {
        "loss": round(metrics["eval_loss_sum"] / count, 6),
        "accuracy": round(metrics["eval_correct"] / count, 6),
        "predictions": int(metrics["eval_examples"]),
    }


def _print(result: dict[str, Any], as_json: bool) -> None:
    """Print the result, as JSON or for people."""
    if as_json:
        print(json.dumps(result))
        return
    before, after = result["before"], result["after"]
    print(f"held-out loss     {before['loss']:.4f} -> {after['loss']:.4f}  ({after['predictions']:,} predictions)")
    print(f"held-out accuracy {before['accuracy']:.4f} -> {after['accuracy']:.4f}")
    print(f"{result['steps']} steps on {result['train_examples']:,} rows, {duration(result['seconds'])}")
    print(f"adapter (stock PEFT): {result['adapter_dir']}")


class View:
    """Shows a progress bar on a terminal, else a line for each phase and each tenth of a round; on stderr."""

    def __init__(self, options: Options) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._options = options
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=options.rounds * options.steps)
        self._last = ""

    def __enter__(self) -> View:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def note(self, round_: int, progress: worker_pb2.Progress) -> None:
        """Show a progress note of the worker."""
        steps, rounds = self._options.steps, self._options.rounds
        phase = f"round {round_}/{rounds}: {progress.phase}" if round_ <= rounds else f"after: {progress.phase}"
        text = f"{phase} loss {progress.loss:.4f}" if progress.steps else phase
        completed = (round_ - 1) * steps + progress.step if progress.steps else None
        self._bar.update(self._task, description=text, completed=completed)
        tenth = 10 * progress.step // progress.steps if progress.steps else ""
        mark = f"{phase} {tenth}"
        if self._bar.disable and mark != self._last:
            at = f" step {progress.step}/{progress.steps}" if progress.steps else ""
            print(f"{text}{at}", file=sys.stderr, flush=True)
            self._last = mark
