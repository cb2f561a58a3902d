"""``fedcompress inspect``: what is in an update file or an adapter folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="inspect")(inspect)


def inspect(
    path: Annotated[Path, typer.Argument(help="An .fcu file, or a PEFT adapter folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show header and sizes of an update, or the layout of an adapter.

    Examples:
      fedcompress inspect update.fcu

      fedcompress inspect demo-out/adapter --json
    """
    facts = _adapter(path) if path.is_dir() else _update(path)
    if as_json:
        print(json.dumps(facts))
        return
    for key, value in facts.items():
        print(f"{key:<18} {value}")


def _update(path: Path) -> dict[str, Any]:
    from fedcompress.errors import ConfigError
    from fedcompress.wire import Limits, unpack

    if not path.is_file():
        raise ConfigError("PATH", path, "must be an .fcu file or an adapter folder")
    data = path.read_bytes()
    envelope = unpack(data, Limits(max_body=len(data)))
    header = envelope.header
    facts: dict[str, Any] = {"bytes": len(data), "digest": envelope.digest.hex(), "kind": header.kind.name}
    for name in ("run", "site", "round", "version", "codec", "examples", "init_seed"):
        facts[name] = getattr(header, name)
    for name in ("base_digest", "result_digest", "layout_digest", "base_fingerprint", "adapter_digest"):
        facts[name] = getattr(header, name).hex()
    facts["section_bytes"] = [len(s) for s in envelope.sections]
    facts["metrics"] = dict(header.metrics)
    return facts


def _adapter(path: Path) -> dict[str, Any]:
    from fedcompress.adapters import adapter_digest, load_adapter
    from fedcompress.types import GROUPS, state_digest

    adapter = load_adapter(path)
    sizes = {g: sum(t.numel for t in adapter.layout.tensors if t.group == g) for g in GROUPS}
    return {
        "tensors": len(adapter.layout.tensors),
        "parameters": adapter.layout.numel,
        "parameters_by_group": {g: n for g, n in sizes.items() if n},
        "bf16_bytes": adapter.layout.plain_bytes(2),
        "layout_digest": adapter.layout.digest.hex(),
        "adapter_digest": adapter_digest(adapter.config).hex(),
        "state_digest": state_digest(adapter.layout, adapter.tensors).hex(),
    }
