"""Flower apps for the fault tests: the real transport and coordinator, and sites without a model.

An app is written to a folder of its own, since Flower copies it from there to every place; what it does is imported
from here, by ``PYTHONPATH``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.demo.federation import Federation
from fedcompress.runtime.process_group import script

ROOT = Path(__file__).resolve().parents[3]


def write_app(folder: Path, server: str, client: str, config: Mapping[str, Any]) -> Path:
    """A Flower app whose halves are ``app`` of two modules."""
    (folder / "fleetapp").mkdir(parents=True)
    for name, module in (("server", server), ("client", client)):
        (folder / "fleetapp" / f"{name}.py").write_text(f"from {module} import app as found\n\napp = found\n")
    (folder / "fleetapp" / "__init__.py").write_text("")
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items())
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "fleet"\nversion = "1.0.0"\nlicense = "Apache-2.0"\ndependencies = []\n\n'
        '[tool.flwr.app]\npublisher = "fedcompress"\nfab-include = ["fleetapp/**/*.py"]\n\n'
        '[tool.flwr.app.components]\nserverapp = "fleetapp.server:app"\nclientapp = "fleetapp.client:app"\n\n'
        f"[tool.flwr.app.config]\n{lines}"
    )
    return folder


def submit(federation: Federation, app: Path) -> None:
    """``flwr run`` of it."""
    federation.group.start("run", [script("flwr"), "run", app, "local", "--stream"], cwd=federation.folder)


def variables() -> dict[str, str]:
    """By which the apps find this package."""
    return {"PYTHONPATH": str(ROOT)}
