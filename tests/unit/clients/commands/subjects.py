"""What ``site doctor`` checks, made for a test from a site.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clients.commands.checks.base import Check, Subject
from clients.site import SiteConfig
from fedcompress.adapters import Adapter
from fedcompress.adapters.template import Template
from fedcompress.config.objective import Classification
from tests.support import lora_layout, normal

TOML = '[site]\nname="north"\nstate_dir="state"\n[model]\npath="model"\n[data]\ntrain="t.jsonl"\nheldout="h.jsonl"\n'


def subject(file: Path, **changes: Any) -> Subject:
    return Subject(**{"file": file, "site": SiteConfig.load(file), **changes})


def template(fingerprint: str = "") -> Template:
    layout = lora_layout()
    adapter = Adapter(config={}, layout=layout, tensors=normal(layout, 0))
    return Template(adapter=adapter, objective=Classification(labels=("yes", "no")), base_fingerprint=fingerprint)


def states(found: list[Check]) -> list[str]:
    return [check.status for check in found]
