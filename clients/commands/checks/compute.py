"""These checks look at what computes: packages, devices, memory."""

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
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # the planner's names by site.toml's
BITS = {"8bit": 8.0, "4bit": 4.5}  # bits of a quantised weight, with its scale
BATCH = 16  # examples of a step, where site.toml leaves the micro-batch open
LORA_RANK = 16  # rank of LoRA that is assumed where there is no template


def check_packages(subject: Subject) -> list[Check]:
    """Compare the installed versions with the ranges of pyproject.toml."""
    if importlib.util.find_spec("packaging") is None:
        return [warn("packages", "not checked: the package packaging is absent")]
    from packaging.requirements import Requirement

    project = tomllib.loads((app_folder() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    absent = []
    other = []
    good = 0
    for text in [*project["dependencies"], *project["optional-dependencies"]["site"]]:
        requirement = Requirement(text)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            absent.append(requirement.name)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good += 1
        else:
            other.append(f"{requirement.name} {version} (wanted {requirement.specifier})")
    remedy = "pip install -c constraints.txt 'fedcompress[site]'"
    if absent:
        return [fail("packages", f"absent: {', '.join(absent)}", remedy)]
    if other:
        return [warn("packages", f"other versions than tested: {', '.join(other)}", remedy)]
    return [ok("packages", f"{good} packages, all in their ranges"), *_optional(subject)]


def _optional(subject: Subject) -> list[Check]:
    """Return failures for packages that only some settings need."""
    if subject.site.model.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        return [fail("packages", "absent: flash-attn", 'pip install flash-attn, or model.attention = "sdpa"')]
    return []


def check_device(subject: Subject) -> list[Check]:
    """Compare the GPUs with the build of torch, and with what site.toml asks for."""
    try:
        import torch
    except ImportError as error:
        return [fail("device", f"torch does not import: {error}", "pip install torch")]
    site = subject.site
    cards = gpus()
    absent = find_absent_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), len(cards))
    if absent:
        return [fail("device", f"CUDA_VISIBLE_DEVICES names {absent}, of {len(cards)} GPUs", "name those that exist")]
    if cards and not _hides_gpus() and not torch.cuda.is_available():
        build = torch.version.cuda or "none, a CPU build"
        text = f"{len(cards)} GPU(s), but torch {torch.__version__} cannot use them (its CUDA: {build})"
        return [fail("device", text, "install a torch build for the driver's CUDA, or renew the driver")]
    if not torch.cuda.is_available():
        return _cpu(subject, torch)
    count = torch.cuda.device_count()
    if site.engine.ranks > count:
        text = f"engine.ranks is {site.engine.ranks}, but there are {count} GPU(s)"
        return [fail("device", text, f"set engine.ranks = {count}, or give it more GPUs")]
    device = f"{count} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    if site.model.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        return [warn("device", f"{device}: bfloat16 is not supported", 'set model.dtype = "float16" or "float32"')]
    return [ok("device", device)]


def _hides_gpus() -> bool:
    """Return whether CUDA_VISIBLE_DEVICES hides all GPUs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def find_absent_gpus(visible: str | None, count: int) -> list[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names by number, and that are not there; ``count`` GPUs are."""
    parts = [p.strip() for p in (visible or "").split(",")]
    return [p for p in parts if p.isdigit() and int(p) >= count]


def _cpu(subject: Subject, torch: Any) -> list[Check]:
    """Check the settings of a machine without a GPU."""
    site = subject.site
    cores = len(os.sched_getaffinity(0))
    device = f"CPU, {cores} cores, torch {torch.__version__}"
    if site.engine.ranks * site.engine.threads > cores:
        text = f"{device}: {site.engine.ranks} ranks of {site.engine.threads} threads"
        return [warn("device", text, "lower engine.ranks or engine.threads")]
    if site.model.dtype == "float16" or site.model.quantization != "none":
        setting = "float16" if site.model.dtype == "float16" else f"quantization {site.model.quantization}"
        return [warn("device", f"{device}: {setting} is slow here", "use float32 or bfloat16 without quantization")]
    return [ok("device", device)]


def check_memory(subject: Subject) -> list[Check]:
    """Compare the bytes of a rank, as the planner has them, with what is free."""
    try:
        need = plan_rank_bytes(subject)
    except (FedCompressError, ValueError, KeyError, OSError, ImportError) as error:
        return [warn("memory", f"not planned: {error}".splitlines()[0], "`fedcompress plan` may say more")]
    assumption = ""
    if subject.template is None:
        assumption = f", for LoRA of rank {LORA_RANK}: --run-template says what is trained"
    cards = gpus()
    if cards and not _hides_gpus():
        free = min(g.total - g.used for g in cards)
        total = min(g.total for g in cards)
        owner = "of the fullest GPU"
    else:
        need = subject.site.engine.ranks * (need + RANK_BASE)
        total, free = host_memory()
        owner = "of the host"
    text = f"{size(need)} planned, {size(free)} free {owner}{assumption}"
    remedy = "lower engine.micro_batch, set gradient_checkpointing, or quantise the base"
    if need > total:
        return [fail("memory", text, remedy)]
    if need > free:
        return [warn("memory", text, f"end what uses it, or {remedy}")]
    return [ok("memory", text)]


def plan_rank_bytes(subject: Subject) -> int:
    """Return the bytes of memory that a rank is planned to need.

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
    planned = plan(_model(subject), setup)
    saved = 0
    if base.quantization in BITS:
        bits = 32 if base.dtype == "float32" else 16
        saved = int(planned.weights * (1 - BITS[base.quantization] / bits))
    return planned.total - saved


def _model(subject: Subject) -> Any:
    """Build the model on the meta device, without weights, with its adapter."""
    if subject.template is None:
        from fedcompress.cli.plan import on_meta

        return on_meta(str(subject.site.model.path), LORA_RANK)
    from fedcompress.adapters.attach import attach_adapter
    from fedcompress.adapters.base_model import build_base

    template = subject.template
    module = build_base(subject.site.model, template.objective, meta=True)
    return attach_adapter(module, template.adapter.config, template.freeze).model
