"""``fedcompress export`` writes a published version as a stock PEFT folder, merged into its base, or as a model."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedcompress.adapters import load_template
from fedcompress.adapters.card import write_card
from fedcompress.adapters.constants import CONSTANTS, MANIFEST, load_constants
from fedcompress.adapters.export import export_adapter
from fedcompress.adapters.full.export import export_run
from fedcompress.adapters.full.modes import trains_base_weights
from fedcompress.adapters.template import Template
from fedcompress.errors import ConfigError, MismatchError, MissingPackageError
from fedcompress.types import Tensors, state_digest
from server.exported import gather_facts
from server.ledger.reader import LedgerReader
from server.ledger.state_replay import replay_version
from server.runs import find_run, load_saved_settings, run_settings, template_copy_path


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that can be set on the command line."""

    state: str
    run_name: str = ""
    version: int = -1  # -1 exports the newest
    out: str = "adapter"
    merged: bool = False
    model: str = ""
    dtype: str = "float32"
    template: str | None = None
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.version < -1:
            raise ConfigError("--round", self.version, "must be at least 0")
        if self.merged != bool(self.model):
            raise ConfigError("--model", repr(self.model), "goes with --merged, and --merged with it")
        out = Path(self.out)
        if out.exists() and not out.is_dir():
            raise ConfigError("--out", out, "must be a folder")
        if self.merged and out.is_dir() and any(out.iterdir()):
            raise ConfigError("--out", out, "must be a new or an empty folder for a model")


def run(options: Options) -> int:
    """Write the folder of a version.

    Raises:
        ConfigError: no such state directory, run or version; or the model cannot take the adapter.
        StateError: the ledger is damaged.
    """
    folder, name = find_run(options.state, options.run_name)
    template, source = _load_template(options, folder, name)
    with LedgerReader(folder) as reader:
        version, state = replay_version(reader, name, None if options.version < 0 else options.version)
        layout, adapter_config, fingerprint = reader.run_row(name)
        settings = run_settings(load_saved_settings(folder), name)
        facts = gather_facts(reader, name, version, settings)
    is_same_config = json.dumps(dict(template.adapter.config), sort_keys=True) == adapter_config
    if template.adapter.layout.to_json() != layout or not is_same_config:
        raise MismatchError("template", f"--template: {source}: run {name} was begun with another initial adapter")
    if options.merged and trains_base_weights(template.adapter.config):
        raise ConfigError("--merged", name, "must be a run of an adapter: this one trains weights: export it without")
    constants = load_constants((source / CONSTANTS).read_bytes()) if template.constants else {}
    out = Path(options.out)
    if options.merged:
        with redirect_stdout(sys.stderr):  # deepspeed logs to stdout when PEFT imports it
            _write_merged(options, template, state=state, constants=constants, fingerprint=fingerprint)
            write_card(out, "", template.objective, facts, is_adapter=False)
    else:
        export_run(out, template, state, constants, facts)
    result = {
        "run": name,
        "version": version,
        "digest": state_digest(template.adapter.layout, state).hex(),
        "folder": str(out.resolve()),
        "merged": options.merged,
    }
    print(json.dumps(result) if options.as_json else f"{name}: version {version}: {result['folder']}")
    return 0


def _load_template(options: Options, folder: Path, run: str) -> tuple[Template, Path]:
    """Load the run's initial adapter, and return it with its folder.

    It is the one of the option, or the copy in the state directory, or the one that the run was started with.
    """
    candidates = [template_copy_path(folder, run)]
    if options.template:
        candidates = [Path(options.template)]
    elif initial := run_settings(load_saved_settings(folder), run).get("initial-adapter"):
        candidates.append(Path(initial))
    source = next((path for path in candidates if (path / MANIFEST).is_file()), None)
    if source is None:
        raise ConfigError("--template", options.template, "must be the folder of the run's initial adapter")
    return load_template(source), source


def _write_merged(
    options: Options, template: Template, *, state: Tensors, constants: dict[str, Any], fingerprint: str
) -> None:
    """Write the base model with the adapter merged into it."""
    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"packages {', '.join(missing)}: are absent: pip install 'fedcompress[site]'")
    from fedcompress.adapters.base_model import BaseModel, resolve_model
    from fedcompress.adapters.fingerprint import base_fingerprint
    from fedcompress.adapters.merged import save_merged

    path = resolve_model(options.model, Path.cwd(), field="--model")
    actual = base_fingerprint(path).hex()
    if fingerprint and actual != fingerprint:
        rule = f"must be {fingerprint[:16]}, on which the run was trained"
        raise MismatchError("base-model", f"--model: {options.model}: {actual[:16]}: {rule}")
    base = BaseModel(path=path, dtype=options.dtype)
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        export_adapter(Path(work) / "adapter", template, state, constants)
        merged = Path(work) / "merged"
        save_merged(merged, base, Path(work) / "adapter", template.objective)
        if out.is_dir():
            out.rmdir()
        merged.rename(out)
