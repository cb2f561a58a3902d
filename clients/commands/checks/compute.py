"""Checks of what computes: packages, devices, memory."""

from __future__ import annotations

import importlib.util
import os
import tomllib
from importlib import metadata
from typing import Any

from clients.commands.checks.base import Check, Subject, fail, ok, warn
from clients.runtime.hardware import gpus, host_memory
from fedcompress.errors import FedCompressError
from fedcompress.formatting import size
from fedcompress.runtime.flower_app import app_folder

RANK_BASE = 700 << 20  # bytes of a rank's process before there is a model: torch and DeepSpeed
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
BITS = {"8bit": 8.0, "4bit": 4.5}  # of a quantised weight, with its scale
BATCH = 16  # examples a step, where site.toml leaves the micro-batch open
LORA_RANK = 16  # assumed where there is no template


def check_packages(subject: Subject) -> list[Check]:
    """Installed versions against the ranges of pyproject.toml."""
    if importlib.util.find_spec("packaging") is None:
        return [warn("packages", "not checked: the package packaging is absent")]
    from packaging.requirements import Requirement

    project = tomllib.loads((app_folder() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    absent, other, good = [], [], 0
    for text in [*project["dependencies"], *project["optional-dependencies"]["site"]]:
        wanted = Requirement(text)
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            absent.append(wanted.name)
            continue
        if wanted.specifier.contains(found, prereleases=True):
            good += 1
        else:
            other.append(f"{wanted.name} {found} (wanted {wanted.specifier})")
    remedy = "pip install -c constraints.txt 'fedcompress[site]'"
    if absent:
        return [fail("packages", f"absent: {', '.join(absent)}", remedy)]
    if other:
        return [warn("packages", f"other versions than tested: {', '.join(other)}", remedy)]
    return [ok("packages", f"{good} packages, all in their ranges"), *_optional(subject)]


def _optional(subject: Subject) -> list[Check]:
    if subject.site.model.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        return [fail("packages", "absent: flash-attn", 'pip install flash-attn, or model.attention = "sdpa"')]
    return []


def check_device(subject: Subject) -> list[Check]:
    """GPUs against the build of torch and what site.toml asks for."""
    try:
        import torch
    except ImportError as error:
        return [fail("device", f"torch does not import: {error}", "pip install torch")]
    site, cards = subject.site, gpus()
    named = find_absent_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), len(cards))
    if named:
        return [fail("device", f"CUDA_VISIBLE_DEVICES names {named}, of {len(cards)} GPUs", "name those that exist")]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if cards and not hidden and not torch.cuda.is_available():
        build = torch.version.cuda or "none, a CPU build"
        text = f"{len(cards)} GPU(s), but torch {torch.__version__} cannot use them (its CUDA: {build})"
        return [fail("device", text, "install a torch build for the driver's CUDA, or renew the driver")]
    if not torch.cuda.is_available():
        return _cpu(subject, torch)
    count = torch.cuda.device_count()
    if site.engine.ranks > count:
        text = f"engine.ranks is {site.engine.ranks}, but there are {count} GPU(s)"
        return [fail("device", text, f"set engine.ranks = {count}, or give it more GPUs")]
    about = f"{count} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    if site.model.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        return [warn("device", f"{about}: bfloat16 is not supported", 'set model.dtype = "float16" or "float32"')]
    return [ok("device", about)]


def find_absent_gpus(visible: str | None, count: int) -> list[str]:
    """GPUs that are named by number in CUDA_VISIBLE_DEVICES, and are not there."""
    parts = [p.strip() for p in (visible or "").split(",")]
    return [p for p in parts if p.isdigit() and int(p) >= count]


def _cpu(subject: Subject, torch: Any) -> list[Check]:
    site, cores = subject.site, len(os.sched_getaffinity(0))
    about = f"CPU, {cores} cores, torch {torch.__version__}"
    if site.engine.ranks * site.engine.threads > cores:
        text = f"{about}: {site.engine.ranks} ranks of {site.engine.threads} threads"
        return [warn("device", text, "lower engine.ranks or engine.threads")]
    if site.model.dtype == "float16" or site.model.quantization != "none":
        what = "float16" if site.model.dtype == "float16" else f"quantization {site.model.quantization}"
        return [warn("device", f"{about}: {what} is slow here", "use float32 or bfloat16 without quantization")]
    return [ok("device", about)]


def check_memory(subject: Subject) -> list[Check]:
    """The planner's bytes of a rank against what is free."""
    try:
        need = plan_rank_bytes(subject)
    except (FedCompressError, ValueError, KeyError, OSError, ImportError) as error:
        return [warn("memory", f"not planned: {error}".splitlines()[0], "`fedcompress plan` may say more")]
    assumed = (
        "" if subject.template is not None else f", for LoRA of rank {LORA_RANK}: --run-template says what is trained"
    )
    ranks, cards = subject.site.engine.ranks, gpus()
    if cards and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        have, total, who = min(g.total - g.used for g in cards), min(g.total for g in cards), "of the fullest GPU"
    else:
        need = ranks * (need + RANK_BASE)
        (total, have), who = host_memory(), "of the host"
    text = f"{size(need)} planned, {size(have)} free {who}{assumed}"
    remedy = "lower engine.micro_batch, set gradient_checkpointing, or quantise the base"
    if need > total:
        return [fail("memory", text, remedy)]
    return [warn("memory", text, f"end what uses it, or {remedy}") if need > have else ok("memory", text)]


def plan_rank_bytes(subject: Subject) -> int:
    """Bytes of a rank.

    Raises:
        ConfigError: the model or the adapter cannot be built.
    """
    from fedcompress.optim.memory_plan import Setup, plan

    base, engine = subject.site.model, subject.site.engine
    setup = Setup(
        optimizer="adamw8bit",
        zero=engine.zero_stage,
        ranks=engine.ranks,
        dtype=DTYPES[base.dtype],
        micro_batch=engine.micro_batch or max(1, BATCH // engine.ranks),
        length=subject.max_length,
        checkpointing=base.gradient_checkpointing,
    )
    found = plan(_model(subject), setup)
    saved = 0
    if base.quantization in BITS:
        saved = int(found.weights * (1 - BITS[base.quantization] / (32 if base.dtype == "float32" else 16)))
    return found.total - saved


def _model(subject: Subject) -> Any:
    """On the meta device, with its adapter."""
    if subject.template is None:
        from fedcompress.cli.plan import on_meta

        return on_meta(str(subject.site.model.path), LORA_RANK)
    from fedcompress.adapters.attach import attach_adapter
    from fedcompress.adapters.base_model import build_base

    template = subject.template
    module = build_base(subject.site.model, template.objective, meta=True)
    return attach_adapter(module, template.adapter.config, template.freeze).model
