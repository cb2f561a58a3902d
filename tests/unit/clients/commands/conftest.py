"""A small site whose checks all end well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.unit.clients.commands.subjects import TOML


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    save_file({"w": np.ones(8, np.float32)}, tmp_path / "model" / "model.safetensors")
    for name in ("t", "h"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a", "label": "yes"}\n' * 3)
    (tmp_path / "site.toml").write_text(TOML)
    return tmp_path / "site.toml"
