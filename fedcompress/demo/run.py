"""The demo: data, adapter, federation, result."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import fedcompress
from fedcompress.accounting import BASELINES, Traffic
from fedcompress.adapters import base_fingerprint, load_adapter
from fedcompress.codecs import CodecSpec
from fedcompress.config import RunConfig
from fedcompress.demo import data as demo_data
from fedcompress.demo.federation import Federation, app_folder
from fedcompress.demo.processes import check_port, wait_until
from fedcompress.errors import ConfigError, MissingPackageError, ProcessError
from fedcompress.merging import check_space, rule_named

NEEDS = ("flwr", "torch", "deepspeed", "peft", "transformers", "bitsandbytes", "grpc", "psutil", "matplotlib")
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
MIN_MEMORY = 4 << 30  # bytes, for three sites
RUN_TIMEOUT = 1800.0  # seconds
DOWNLINKS = {"lora-transform": "lora-transform-down"}  # presets that come in pairs
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What can be set from the command line."""

    out: Path
    task: str = demo_data.TASK
    rounds: int = 5
    sites: int = 3
    codec: str = "lora-transform"
    downlink_codec: str = ""  # empty: the one that goes with codec
    rule: str = "lora-ridge"
    space: str = "factors"
    steps: int = 12
    seed: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        if self.task != demo_data.TASK:
            raise ConfigError("--task", self.task, f"must be one of {[demo_data.TASK]}")
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
        check_space(rule_named(self.rule, field="--rule"), self.space)


def preflight(options: DemoOptions) -> None:
    """Raise, in one line with the remedy, if the demo cannot run here."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"packages {', '.join(missing)}: are absent: pip install 'fedcompress[site,report]'")
    import psutil

    free = psutil.virtual_memory().available
    need = MIN_MEMORY * max(options.sites, 3) // 3
    if free < need:
        raise ConfigError(
            "memory", f"{free / 2**30:.1f} GiB available", f"must be at least {need / 2**30:.1f} GiB: use fewer --sites"
        )
    if options.port:
        check_port("--port", options.port)
    demo_data.model_folder()
    demo_data.source_folder()
    app_folder()


def _site_files(options: DemoOptions, work: Path) -> dict[str, Path]:
    """Data and site.toml of each site; the first has two ZeRO ranks where there are two cores."""
    cores = len(os.sched_getaffinity(0))
    files = {}
    for number, site in enumerate(demo_data.write_sites(work / "data", options.sites)):
        path = work / "sites" / f"{site.name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        ranks = min(2, cores) if number == 0 else 1
        path.write_text(
            f'[site]\nname = "{site.name}"\nstate_dir = "{site.name}"\n\n'
            f"[model]\npath = {json.dumps(str(demo_data.model_folder()))}\n\n"
            f"[data]\ntrain = {json.dumps(str(site.train))}\nheldout = {json.dumps(str(site.heldout))}\n\n"
            f"[engine]\nranks = {ranks}\nzero_stage = 2\n"
        )
        files[site.name] = path
    return files


def run_config(options: DemoOptions, work: Path) -> dict[str, Any]:
    """Overrides of the app's run config."""
    return {
        "run": "demo",
        "state-dir": str(work / "coordinator"),
        "initial-adapter": str(work / "initial"),
        "base-fingerprint": base_fingerprint(demo_data.model_folder()).hex(),
        "labels": "|".join(demo_data.LABELS),
        "rounds": options.rounds,
        "min-sites": options.sites,
        "quorum": options.sites,
        "round-timeout": 600.0,
        "steps": options.steps,
        "batch-size": 16,
        "max-length": 48,
        "codec": options.codec,
        "downlink-codec": options.downlink_codec or DOWNLINKS.get(options.codec, options.codec),
        "rule": options.rule,
        "space": options.space,
        "seed": options.seed,
    }


def run_demo(options: DemoOptions, on_event: OnEvent) -> dict[str, Any]:
    """Run everything and return the content of ``result.json``; all processes are ended.

    Raises:
        FedCompressError: with one line that says what to do.
    """
    preflight(options)
    started, began = time.monotonic(), time.time()
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
    with Federation(work, _site_files(options, work), port=options.port) as federation:
        federation.group.start("template", _template_command(options, work), cwd=work)
        federation.start()
        _wait_for_template(federation, work)
        federation.submit(config)
        for event in federation.events(work / "coordinator" / "events.jsonl", timeout=RUN_TIMEOUT):
            events.append(event)
            on_event(event)
            for name, size in federation.group.memory().items():
                peak[name] = max(peak.get(name, 0), size)
        on_event({"event": "phase", "text": "stopping all processes"})
    if events[-1]["event"] == "failed":
        raise ProcessError(f"run: {events[-1]['message']} (see {work / 'logs'})")
    result = make_result(options, config, events, load_adapter(work / "initial").layout, out)
    result["wall_seconds"] = round(time.monotonic() - started, 2)
    result["phase_seconds"] = phases(events, began, time.time())
    result["peak_memory_bytes"] = max(peak.values(), default=0)
    _write(result, out, Path(events[-1]["adapter"]))
    return result


def phases(events: list[dict[str, Any]], began: float, ended: float) -> dict[str, float]:
    """Seconds from the command's start to the first message, of the rounds, of the last evaluation, and to the end."""
    first = next(e["at"] for e in events if e["event"] == "asked")
    last = max((e["at"] for e in events if e["event"] == "round"), default=first)
    marks = {"start": first - began, "rounds": last - first, "evaluation": events[-1]["at"] - last}
    return {name: round(value, 2) for name, value in {**marks, "stop": ended - events[-1]["at"]}.items()}


def _template_command(options: DemoOptions, work: Path) -> list[str | Path]:
    args: list[str | Path] = [work / "initial", demo_data.model_folder(), str(len(demo_data.LABELS)), str(options.seed)]
    return [sys.executable, "-m", "fedcompress.demo.template", *args]


def _wait_for_template(federation: Federation, work: Path) -> None:
    done = work / "initial" / "adapter_config.json"
    wait_until(
        lambda: federation.group.finished("template") and done.is_file(),
        timeout=120,
        what="initial adapter",
        alive=lambda: federation.group.check("superlink"),
    )


def _quality(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Version to its quality event; every version must have one."""
    quality = {e["version"]: e for e in events if e["event"] == "quality"}
    versions = [0, *(e["version"] for e in events if e["event"] == "round")]
    if missing := [v for v in versions if v not in quality]:
        raise ProcessError(f"run: versions {missing}: no site has evaluated them: see the logs of the sites")
    return quality


def make_result(
    options: DemoOptions, config: dict[str, Any], events: list[dict[str, Any]], layout: Any, out: Path
) -> dict[str, Any]:
    """``result.json`` from the coordinator's events; its fields are documented in docs/result.md."""
    quality = _quality(events)
    rows = [
        {
            "round": e["round"],
            "accuracy": quality[e["version"]]["accuracy"],
            "loss": quality[e["version"]]["loss"],
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
        "model": "all-MiniLM-L6-v2, LoRA r=8 on query and value, mean-pooled linear head",
        "sites": options.sites,
        "codec": str(CodecSpec.parse(config["codec"])),
        "downlink_codec": str(CodecSpec.parse(config["downlink-codec"])),
        "rule": options.rule,
        "space": options.space,
        "seed": options.seed,
        "parameters": layout.numel,
        "rounds": rows,
        "accuracy_start": quality[0]["accuracy"],
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


def _write(result: dict[str, Any], out: Path, adapter: Path) -> None:
    from fedcompress.adapters.card import write_card
    from fedcompress.report import plot_accuracy_against_bytes

    shutil.rmtree(out / "adapter", ignore_errors=True)
    shutil.copytree(adapter, out / "adapter")
    write_card(out / "adapter", demo_data.model_folder(), demo_data.LABELS, result)
    plot_accuracy_against_bytes(result, out / "accuracy.png")
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
