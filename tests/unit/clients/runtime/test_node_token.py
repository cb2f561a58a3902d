"""The secret that the nodes of a site know each other by; a served guard is in worker/test_node_registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.runtime.node_token import read_token
from fedcompress.errors import ConfigError


def test_a_token_is_drawn_once_and_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(ConfigError, match="copy it"):
        read_token(path)
    token = read_token(path, make=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(path) == read_token(path, make=True) == token
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(path)
    path.chmod(0o600)
    for text in ("short", "x" * 40 + " y", "é" * 40):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"engine\.token"):
            read_token(path)
