"""Where a worker listens and writes: nobody else may, and every process of the site agrees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.runtime.paths import log_dir, make_state_dir, python_path, socket_path
from fedcompress.errors import StateError


def test_socket_paths_fit(tmp_path: Path) -> None:
    assert socket_path(tmp_path) == tmp_path.resolve() / "worker.sock" or len(str(tmp_path)) > 80
    deep = tmp_path / ("d" * 120)
    path = socket_path(deep)
    assert len(os.fsencode(path)) < 107
    assert path == socket_path(deep)
    assert path != socket_path(deep / "x")
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_socket_is_never_put_where_others_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else made the folder in the shared temporary directory first."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    squatted = tmp_path / f"fedcompress-{os.getuid()}"
    squatted.mkdir()
    squatted.chmod(0o777)
    deep = tmp_path / ("d" * 120)
    with pytest.raises(StateError, match="not private"):
        socket_path(deep)
    squatted.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    squatted.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="not private"):
        socket_path(deep)
    squatted.unlink()
    assert socket_path(deep).parent == squatted


def test_a_new_state_folder_is_private(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    assert make_state_dir(state) == log_dir(state) == state / "logs"
    assert state.stat().st_mode & 0o777 == 0o700
    state.chmod(0o750)
    (state / "logs" / "kept").write_text("")
    make_state_dir(state)
    assert state.stat().st_mode & 0o777 == 0o750, "what the site team has set stays"
    assert (state / "logs" / "kept").exists()


def test_modules_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    root = python_path()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/first", "", root, "/second"]))
    assert python_path().split(os.pathsep) == [root, "/first", "/second"], "each once, this checkout first"
    program = "import clients.runtime.paths as paths; print(paths.__file__)"
    environment = {**os.environ, "PYTHONPATH": python_path()}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(result.stdout.strip()).is_relative_to(root)
