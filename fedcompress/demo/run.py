"""The demo makes data and an adapter, runs a federation on them, and writes the result."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import fedcompress
from fedcompress.adapters import load_template
from fedcompress.codecs import CodecSpec
from fedcompress.config.objective import Objective
from fedcompress.config.run_config import PRIVATE_COHORT, RunConfig
from fedcompress.demo import data as demo_data
from fedcompress.demo.federation import Federation
from fedcompress.demo.tasks import DEMOS, DEPARTMENT, DemoTask
from fedcompress.errors import ConfigError, MissingPackageError, ProcessError, one_of
from fedcompress.identity.certs import CertOptions, make_certs
from fedcompress.merging import check_space, parse_rule
from fedcompress.runtime.flower_app import app_folder
from fedcompress.runtime.process_group import check_port, wait_until
from fedcompress.traffic.accounting import BASELINES, Traffic
from fedcompress.types import Layout

# Packages without which the demo cannot run.
NEEDS = ("flwr", "torch", "deepspeed", "peft", "transformers", "bitsandbytes", "grpc", "psutil", "matplotlib")
# Packages whose versions are in the result.
VERSIONS = (
    "torch",
    "deepspeed",
    "flwr",
    "peft",
    "bitsandbytes",
    "transformers",
    "constriction",
    "numpy",
)
RUN_TIMEOUT = 1800.0  # seconds for all rounds
DOWNLINKS = {"lora-transform": "lora-transform-down"}  # downlink codec by codec, of presets that come in pairs
MAX_LOG_PERPLEXITY = 700.0  # bound on the loss of which the exponential is taken; more would overflow
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Demo options are what can be set from the command line."""

    out: Path  # folder for the result
    task: str = DEPARTMENT  # a row of DEMOS
    rounds: int = 0  # 0: the task's own
    sites: int = 3
    codec: str = "lora-transform"
    downlink_codec: str = ""  # empty: the one that goes with codec
    rule: str = "lora-ridge"
    space: str = "factors"  # what elementwise rules merge of LoRA modules: factors or product
    steps: int = 0  # optimizer steps of a site in a round; 0: the task's own
    seed: int = 0
    port: int = 0  # of the SuperLink; 0: a free one
    insecure: bool = False  # without TLS and node keys

    def __post_init__(self) -> None:
        if self.task not in DEMOS:
            raise ConfigError("--task", self.task, one_of(DEMOS, self.task))
        for name in ("rounds", "steps"):
            if not getattr(self, name):
                object.__setattr__(self, name, getattr(self.demo, name))
        if not 1 <= self.rounds <= 1000:
            raise ConfigError("--rounds", self.rounds, "must be from 1 to 1000")
        if self.steps < 1:
            raise ConfigError("--steps", self.steps, "must be at least 1")
        if not 0 <= self.seed < 1 << 31:
            raise ConfigError("--seed", self.seed, "must be from 0 to 2^31 - 1")
        if not 1 <= self.sites <= len(demo_data.LABELS):
            raise ConfigError("--sites", self.sites, f"must be from 1 to {len(demo_data.LABELS)}, the departments")
        CodecSpec.parse(self.codec, field="--codec")
        if self.downlink_codec:
            CodecSpec.parse(self.downlink_codec, field="--downlink-codec")
        check_space(parse_rule(self.rule, field="--rule"), self.space)

    @property
    def demo(self) -> DemoTask:
        """Return the row of the table of demos."""
        return DEMOS[self.task]


def preflight(options: DemoOptions) -> None:
    """Check that the demo can run here; errors are one line with the remedy.

    Raises:
        MissingPackageError: a package is absent.
        ConfigError: there is too little memory, or the port is taken.
        ProcessError: fedcompress is installed without its sources.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"packages {', '.join(missing)}: are absent: pip install 'fedcompress[site,report]'")
    import psutil

    free = psutil.virtual_memory().available
    need = options.demo.memory * max(options.sites, 3) // 3
    if free < need:
        raise ConfigError(
            "memory", f"{free / 2**30:.1f} GiB available", f"must be at least {need / 2**30:.1f} GiB: use fewer --sites"
        )
    if options.port:
        check_port("--port", options.port)
    demo_data.source_folder()
    app_folder()


def site_files(options: DemoOptions, work: Path, model: Path) -> dict[str, Path]:
    """Write data and site.toml of each site; the first site has two ZeRO ranks where there are two cores.

    Args:
        options: of the demo.
        work: folder for the files.
        model: folder of the base model.

    Returns:
        The site.toml of each site, by name.
    """
    cores = len(os.sched_getaffinity(0))
    files = {}
    demo = options.demo
    for number, site in enumerate(demo_data.write_sites(work / "data", options.sites, demo.form, demo.rows)):
        path = work / "sites" / f"{site.name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        ranks = min(2, cores) if number == 0 else 1
        path.write_text(
            f'[site]\nname = "{site.name}"\nstate_dir = "{site.name}"\n\n'
            f'[model]\npath = {json.dumps(str(model))}\ndtype = "{demo.dtype}"\n\n'
            f"[data]\ntrain = {json.dumps(str(site.train))}\nheldout = {json.dumps(str(site.heldout))}\n\n"
            f"[engine]\nranks = {ranks}\nzero_stage = 2\n"
        )
        files[site.name] = path
    return files


def run_config(options: DemoOptions, work: Path) -> dict[str, Any]:
    """Return the overrides of the app's run config, where ``work`` is the folder for all files of the run."""
    return {
        "run": "demo",
        "state-dir": str(work / "coordinator"),
        "initial-adapter": str(work / "initial"),
        "rounds": options.rounds,
        "min-sites": options.sites,
        "quorum": options.sites,
        "min-cohort": min(options.sites, PRIVATE_COHORT),  # all sites are of one machine: nobody hides from anybody
        "round-timeout": 600.0,
        "steps": options.steps,
        "codec": options.codec,
        "downlink-codec": options.downlink_codec or DOWNLINKS.get(options.codec, options.codec),
        "rule": options.rule,
        "space": options.space,
        "seed": options.seed,
        "require-signatures": False,  # all on one machine, and gone after the run
        **options.demo.config,
    }


def make_demo_certs(options: DemoOptions, work: Path, sites: Iterable[str]) -> Path | None:
    """Make certificates and node keys for this run alone.

    Args:
        options: of the demo.
        work: folder for the files.
        sites: names of the sites.

    Returns:
        The folder of the certificates; None with ``--insecure``.
    """
    if options.insecure:
        return None
    certs = work / "certs"
    make_certs(CertOptions(hosts=("127.0.0.1",), nodes=tuple(sites), days=1), certs)
    (certs / "ca.key").unlink()  # nothing more is signed with it
    return certs


def run_demo(options: DemoOptions, on_event: OnEvent) -> dict[str, Any]:
    """Run the demo, write its result, and end all processes.

    Args:
        options: of the demo.
        on_event: called with each event of the coordinator, and with events ``phase`` of the demo itself.

    Returns:
        The content of ``result.json``.

    Raises:
        FedCompressError: something failed; the message is one line that says what to do.
    """
    preflight(options)
    started = time.monotonic()
    began = time.time()
    out = options.out.resolve()
    work = out / "work"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    except OSError as error:
        raise ConfigError("--out", options.out, f"must be a folder that can be written: {error.strerror}") from error
    config = run_config(options, work)
    RunConfig(**{key.replace("-", "_"): value for key, value in config.items()})
    on_event({"event": "phase", "text": "writing data, starting SuperLink, SuperNodes and workers"})
    events: list[dict[str, Any]] = []
    peak: dict[str, int] = {}
    model = options.demo.model()
    files = site_files(options, work, model)
    with Federation(work, files, port=options.port, certs=make_demo_certs(options, work, files)) as federation:
        federation.group.start("template", _template_command(options, work, model), cwd=work)
        federation.start()
        _wait_for_template(federation, work)
        federation.submit(config)
        for event in federation.events(work / "coordinator" / "events.jsonl", timeout=RUN_TIMEOUT):
            events.append(event)
            on_event(event)
            for name, size in federation.group.memory().items():
                peak[name] = max(peak.get(name, 0), size)
        samples = []
        if options.demo.samples and events[-1]["event"] == "finished":
            on_event({"event": "phase", "text": "answering held-out questions, before and after"})
            samples = _answer_questions(federation, work, model, Path(events[-1]["adapter"]))
        on_event({"event": "phase", "text": "stopping all processes"})
    if events[-1]["event"] == "failed":
        raise ProcessError(f"run: {events[-1]['message']} (see {work / 'logs'})")
    result = make_result(options, config, events, load_template(work / "initial").adapter.layout, out)
    if samples:
        result["samples"] = samples
    result["wall_seconds"] = round(time.monotonic() - started, 2)
    result["phase_seconds"] = measure_phases(events, began, time.time())
    result["peak_memory_bytes"] = max(peak.values(), default=0)
    _write(result, out, Path(events[-1]["adapter"]), load_template(work / "initial").objective, model)
    return result


def _answer_questions(federation: Federation, work: Path, model: Path, adapter: Path) -> list[dict[str, str]]:
    """Return answers to held-out questions of the first site, without the adapter and with it."""
    answers = work / "samples.json"
    questions = sorted((work / "data").glob("*/heldout.jsonl"))[0]
    command: list[str | Path] = [sys.executable, "-m", "fedcompress.demo.samples", model, adapter, questions, answers]
    federation.group.start("samples", command, cwd=work)
    wait_until(
        lambda: federation.group.finished("samples") and answers.is_file(),
        timeout=300,
        what="samples",
        alive=lambda: federation.group.check("superlink"),
    )
    samples: list[dict[str, str]] = json.loads(answers.read_text())
    return samples


def compute_perplexity(options: DemoOptions, quality: dict[str, Any]) -> dict[str, float]:
    """Return ``{"perplexity": ...}`` of a language model, and nothing of a classifier."""
    if not options.demo.samples:
        return {}
    return {"perplexity": math.exp(min(quality["loss"], MAX_LOG_PERPLEXITY))}


def measure_phases(events: list[dict[str, Any]], began: float, ended: float) -> dict[str, float]:
    """Measure how long the phases of a demo took.

    Args:
        events: of the coordinator.
        began: when the command was started, seconds since 1970.
        ended: when all processes had ended, seconds since 1970.

    Returns:
        Seconds by phase: from the command's start to the first message, of the rounds, of the last evaluation, and
        from there to the end.
    """
    first = next(e["at"] for e in events if e["event"] == "asked")
    last = max((e["at"] for e in events if e["event"] == "round"), default=first)
    marks = {"start": first - began, "rounds": last - first, "evaluation": events[-1]["at"] - last}
    return {name: round(value, 2) for name, value in {**marks, "stop": ended - events[-1]["at"]}.items()}


def _template_command(options: DemoOptions, work: Path, model: Path) -> list[str | Path]:
    extra = [*options.demo.template, f"--seed={options.seed}"]
    return [sys.executable, "-m", "fedcompress", "template", model, "--out", work / "initial", *extra]


def _wait_for_template(federation: Federation, work: Path) -> None:
    manifest = work / "initial" / "fedcompress.json"
    wait_until(
        lambda: federation.group.finished("template") and manifest.is_file(),
        timeout=120,
        what="initial adapter",
        alive=lambda: federation.group.check("superlink"),
    )


def _quality(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the quality events by version; raise ``ProcessError`` unless every version has one."""
    quality = {e["version"]: e for e in events if e["event"] == "quality"}
    versions = [0, *(e["version"] for e in events if e["event"] == "round")]
    if missing := [v for v in versions if v not in quality]:
        raise ProcessError(f"run: versions {missing}: no site has evaluated them: see the logs of the sites")
    return quality


def make_result(
    options: DemoOptions, config: dict[str, Any], events: list[dict[str, Any]], layout: Layout, out: Path
) -> dict[str, Any]:
    """Build the content of ``result.json``, whose fields are documented in docs/result.md.

    Args:
        options: of the demo.
        config: overrides of the run config.
        events: of the coordinator, all of a run that has finished.
        layout: of the adapter.
        out: folder of the result.

    Returns:
        The content, without what is measured by the clock and what is answered to questions.
    """
    quality = _quality(events)
    rows = [
        {
            "round": e["round"],
            "accuracy": quality[e["version"]]["accuracy"],
            "loss": quality[e["version"]]["loss"],
            **compute_perplexity(options, quality[e["version"]]),
            "uplink_bytes": e["uplink_bytes"],
            "downlink_bytes": e["downlink_bytes"],
            "seconds": e["seconds"],
        }
        for e in events
        if e["event"] == "round"
    ]
    end = events[-1]
    reports = sum(e["event"] == "reply" and e["round"] > options.rounds for e in events)
    traffic = {
        "up": Traffic(messages=end["up"]["messages"] - reports, payload=end["up"]["payload_bytes"]),
        "down": Traffic(messages=end["down"]["messages"], payload=end["down"]["payload_bytes"]),
    }
    return {
        "task": options.task,
        "model": options.demo.description,
        "sites": options.sites,
        "codec": str(CodecSpec.parse(config["codec"])),
        "downlink_codec": str(CodecSpec.parse(config["downlink-codec"])),
        "rule": options.rule,
        "space": options.space,
        "seed": options.seed,
        "parameters": layout.numel,
        "rounds": rows,
        "accuracy_start": quality[0]["accuracy"],
        **{f"{k}_start": v for k, v in compute_perplexity(options, quality[0]).items()},
        **{f"{k}_end": v for k, v in compute_perplexity(options, quality[len(rows)]).items()},
        "accuracy_end": quality[len(rows)]["accuracy"],
        "payload_bytes": {way: t.payload for way, t in traffic.items()},
        "messages": {way: t.messages for way, t in traffic.items()},
        "baseline_bytes": {
            dtype: {way: t.baseline(layout, dtype) for way, t in traffic.items()} for dtype in BASELINES
        },
        "ratio_vs_bf16": {way: round(t.ratio(layout, "bf16"), 3) for way, t in traffic.items()},
        "site_metrics": [{k: e[k] for k in ("round", "site", "metrics")} for e in events if e["event"] == "reply"],
        "adapter_dir": str(out / "adapter"),
        "versions": {"fedcompress": fedcompress.__version__, **{name: metadata.version(name) for name in VERSIONS}},
    }


def _write(result: dict[str, Any], out: Path, adapter: Path, objective: Objective, model: Path) -> None:
    """Write adapter with its card, picture and ``result.json`` into the folder of the result."""
    from fedcompress.adapters.card import RunFacts, write_card
    from fedcompress.demo.plot import plot_accuracy_against_bytes

    shutil.rmtree(out / "adapter", ignore_errors=True)
    shutil.copytree(adapter, out / "adapter")
    last = result["rounds"][-1]
    facts = RunFacts(
        run="demo",
        version=len(result["rounds"]),
        sites=result["sites"],
        codec=result["codec"],
        rule=result["rule"],
        accuracy=last["accuracy"],
        loss=last["loss"],
    )
    write_card(out / "adapter", str(model), objective, facts)
    plot_accuracy_against_bytes(result, out / "accuracy.png")
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
