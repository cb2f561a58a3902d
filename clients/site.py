"""site.toml: what a site team writes, and nothing else configures a site.

[site]
name = "hospital-north"      # unique in the federation
state_dir = "state"          # relative to this file; residuals and outbox live here

[model]
path = "models/minilm"       # frozen base model, safetensors

[data]
train = "train.jsonl"        # one JSON object a line
heldout = "heldout.jsonl"
text = "text"                # key of the text
label = "label"              # key of the class name

[engine]
ranks = 1                    # training processes
zero_stage = 2               # DeepSpeed ZeRO 0 to 3
micro_batch = 16             # examples a rank handles at once
threads = 1                  # CPU threads a rank
collective_timeout = 3600    # seconds that a rank waits for the others within a step

[privacy]
max_update_norm = 0.0        # 0: do not clip
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedcompress.errors import ConfigError
from fedcompress.wire.envelope import NAME


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a site computes."""

    ranks: int = 1
    zero_stage: int = 2
    micro_batch: int = 16
    threads: int = 1
    collective_timeout: int = 3600  # seconds

    def __post_init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        if not 1 <= self.ranks <= cores:
            raise ConfigError("engine.ranks", self.ranks, f"must be from 1 to {cores}, the cores of this machine")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError("engine.zero_stage", self.zero_stage, "must be 0, 1, 2 or 3")
        for name in ("micro_batch", "threads", "collective_timeout"):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the site's rows are."""

    train: Path
    heldout: Path
    text: str = "text"
    label: str = "label"

    def __post_init__(self) -> None:
        for name in ("train", "heldout"):
            if not getattr(self, name).is_file():
                raise ConfigError(f"data.{name}", getattr(self, name), "must be an existing file")


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """A checked site.toml; paths are absolute."""

    name: str
    state_dir: Path
    model: Path
    data: Data
    engine: Engine = field(default_factory=Engine)
    max_update_norm: float = 0.0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError("site.name", repr(self.name), f"must match {NAME.pattern}")
        if not (self.model / "config.json").is_file():
            raise ConfigError("model.path", self.model, "must be a folder with config.json and weights")
        if not self.max_update_norm >= 0:  # NaN is refused too
            raise ConfigError("privacy.max_update_norm", self.max_update_norm, "must be >= 0 (0: do not clip)")

    @classmethod
    def load(cls, path: Path) -> SiteConfig:
        """Read and check a site.toml.

        Raises:
            ConfigError: the file is absent or not TOML; an unknown key; a value out of range.
        """
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError("site.toml", path, f"must be a readable TOML file: {error}") from error
        known: dict[str, dict[str, type]] = {
            "site": {"name": str, "state_dir": str},
            "model": {"path": str},
            "data": {"train": str, "heldout": str, "text": str, "label": str},
            "engine": {f.name: int for f in fields(Engine)},
            "privacy": {"max_update_norm": float},
        }
        _check_keys(raw, known)
        site, data = raw.get("site", {}), raw.get("data", {})
        base = path.resolve().parent
        for name in ("site.name", "site.state_dir", "model.path", "data.train", "data.heldout"):
            section, _, key = name.partition(".")
            if key not in raw.get(section, {}):
                raise ConfigError(f"{section}.{key}", "nothing", "must be set in site.toml")
        paths = {k: base / data[k] for k in ("train", "heldout")}
        keys = {k: data[k] for k in ("text", "label") if k in data}
        return cls(
            name=site["name"],
            state_dir=base / site["state_dir"],
            model=base / raw["model"]["path"],
            data=Data(**paths, **keys),
            engine=Engine(**raw.get("engine", {})),
            max_update_norm=float(raw.get("privacy", {}).get("max_update_norm", 0.0)),
        )


def _check_keys(raw: dict[str, Any], known: dict[str, dict[str, type]]) -> None:
    for section, body in raw.items():
        if section not in known or not isinstance(body, dict):
            raise ConfigError(section, body, f"unknown section: must be one of {list(known)}")
        for key, value in body.items():
            kind = known[section].get(key)
            if kind is None:
                raise ConfigError(f"{section}.{key}", value, f"unknown key: must be one of {list(known[section])}")
            allowed = (int, float) if kind is float else (kind,)
            if not isinstance(value, allowed) or isinstance(value, bool):
                raise ConfigError(f"{section}.{key}", repr(value), f"must be of type {kind.__name__}")
