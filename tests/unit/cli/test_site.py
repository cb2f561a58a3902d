"""``fedcompress site``: every option on the command line reaches its command, and every command explains itself."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clients.commands.__main__ import NAMES as COMMANDS
from clients.commands.__main__ import main as command_main
from fedcompress.cli import kit, site
from fedcompress.cli.help import App

APP = App(help="")
site.register(APP)
LINES = {
    "init": ["--name", "north", "--model", "m", "--ranks", "2", "--max-update-norm", "1.5", "--yes"],
    "join": ["n.kit", "-d", "new", "--train", "rows.csv", "--passphrase-file", "secret", "--yes"],
    "doctor": ["site.toml", "--superlink", "h:1", "--run-template", "t", "--max-length", "9"],
    "up": ["site.toml", "--superlink", "h:1", "--insecure", "--detach"],
    "down": ["site.toml", "--timeout", "3"],
    "status": ["site.toml", "--watch", "--interval", "1"],
    "export": ["site.toml", "-o", "out", "--run", "summer"],
    "logs": ["site.toml", "-f", "--rank", "1", "--lines", "7"],
    "train": ["site.toml", "--local", "--template", "t", "--steps", "3", "--lr", "0.1", "-o", "out"],
}

NAMES = [name for name in COMMANDS if name != "evaluate"]  # which is `fedcompress evaluate --data`


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    seen: list[tuple[str, ...]] = []
    for module in (site, kit):
        monkeypatch.setattr(module, "execute", lambda *words: seen.append(words))
    return seen


def test_every_command_has_a_line_here() -> None:
    assert sorted(LINES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_options_reach_their_command(name: str, executed: list[tuple[str, ...]]) -> None:
    done = CliRunner().invoke(APP, ["site", name, *LINES[name], "--json"])
    assert done.exit_code == 0, done.output
    ((module, command, text),) = executed
    assert (module, command) == ("clients.commands", name)
    raw: dict[str, Any] = json.loads(text)
    assert raw.pop("debug") is False
    made = importlib.import_module(f"clients.commands.{name}").Options(**raw)
    assert made.as_json is True
    expected = {
        "init": {
            "answers": {"site.name": "north", "model.path": "m", "engine.ranks": 2, "privacy.max_update_norm": 1.5}
        },
        "join": {
            "kit": "n.kit",
            "folder": "new",
            "answers": {"data.train": "rows.csv"},
            "passphrase_file": "secret",
            "yes": True,
        },
        "doctor": {"run_template": "t", "max_length": 9},
        "up": {"insecure": True, "detach": True},
        "down": {"timeout": 3.0},
        "status": {"watch": True, "interval": 1.0},
        "export": {"out": "out", "run_name": "summer"},
        "logs": {"follow": True, "rank": 1, "lines": 7},
        "train": {"local": True, "steps": 3, "lr": 0.1, "out": "out"},
    }[name]
    assert {key: getattr(made, key) for key in expected} == expected


@pytest.mark.parametrize("name", [*NAMES, "kit", "worker"])
def test_help_has_examples(name: str) -> None:
    text = CliRunner().invoke(APP, ["site", name, "--help"]).output
    assert "Example" in text
    assert f"fedcompress site {name}" in " ".join(text.split())
    assert "--json" in text


def test_errors_are_one_line_and_debug_shows_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"site": str(tmp_path / "absent.toml")}
    assert command_main(["status", json.dumps(options)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    command = [sys.executable, "-m", "fedcompress", "site", "status", str(tmp_path / "absent.toml"), "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


def test_the_worker_alone(executed: list[tuple[str, ...]], tmp_path: Path) -> None:
    found = CliRunner().invoke(APP, ["site", "worker", str(tmp_path / "s.toml"), "--json"])
    assert json.loads(found.stdout)[1:] == ["-m", "clients.worker.main", "--site", str(tmp_path / "s.toml")]
    CliRunner().invoke(APP, ["site", "worker", str(tmp_path / "s.toml")])
    assert executed == [("clients.worker.main", "--site", str(tmp_path / "s.toml"))]
