"""The coordinator's commands: every option reaches its command, and every command explains itself."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedcompress.cli import coordinator
from fedcompress.cli.help import App
from server.commands.__main__ import NAMES
from server.commands.__main__ import main as command_main

APP = App(help="")
coordinator.register(APP)
LINES = {
    "run": ["c.toml", "--resume"],
    "status": ["state", "--run", "r", "--watch", "--interval", "1"],
    "stop": ["state", "--now", "--timeout", "3"],
    "history": ["state", "--run", "r", "--site-rounds"],
    "watch": ["state", "--run", "r", "--web", "--port", "8", "--allow-host", "a", "--allow-host", "b"],
    "export": [
        "state",
        "--round",
        "3",
        "-o",
        "o",
        "--merged",
        "--model",
        "m",
        "--dtype",
        "float16",
        "--template",
        "t",
    ],
}
EXPECTED: dict[str, dict[str, Any]] = {
    "run": {"config": "c.toml", "resume": True},
    "status": {"state": "state", "run_name": "r", "watch": True, "interval": 1.0},
    "stop": {"state": "state", "now": True, "timeout": 3.0},
    "history": {"run_name": "r", "sites": False, "site_rounds": True, "refusals": False},
    "watch": {"run_name": "r", "web": True, "port": 8, "allow_host": ["a", "b"], "host": "127.0.0.1"},
    "export": {"version": 3, "out": "o", "merged": True, "model": "m", "dtype": "float16", "template": "t"},
}


def test_every_command_has_a_line_here() -> None:
    assert sorted(LINES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_options_reach_their_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[tuple[str, ...]] = []
    monkeypatch.setattr(coordinator, "execute", lambda *words: executed.append(words))
    done = CliRunner().invoke(APP, [name, *LINES[name], "--json"])
    assert done.exit_code == 0, done.output
    ((module, command, text),) = executed
    assert (module, command) == ("server.commands", name)
    raw: dict[str, Any] = json.loads(text)
    assert raw.pop("debug") is False
    made = importlib.import_module(f"server.commands.{name}").Options(**raw)
    assert made.as_json is True
    assert {key: getattr(made, key) for key in EXPECTED[name]} == EXPECTED[name]


@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples(name: str) -> None:
    text = CliRunner().invoke(APP, [name, "--help"]).output
    assert "Example" in text
    assert f"fedcompress {name}" in " ".join(text.split())
    assert "--json" in text


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_one_line_and_debug_shows_more(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"config" if name == "run" else "state": str(tmp_path / "absent")}
    assert command_main([name, json.dumps(options)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    command = [sys.executable, "-m", "fedcompress", name, str(tmp_path / "absent"), "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_unknown_key_is_told_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[coordinator]\nstate_dir = "s"\ninsecure = true\n[run]\ninitial-adapter = "i"\nround = 3\n')
    done = subprocess.run(
        [sys.executable, "-m", "fedcompress", "run", str(file), "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: run.round: 3: unknown key")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "s").exists()
