"""Commands of the documentation are understood as they stand there; nothing is run."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
import typer

from fedcompress.cli.main import app
from tests.support import ROOT

NAMES = ("operations", "security", "site", "watching")


def commands_of(document: Path) -> list[str]:
    """Of the blocks of one document, without comments; a line may go on, or have two."""
    text = document.read_text().replace("\\\n", " ")
    lines = [line.partition("#")[0].strip() for line in text.splitlines() if line.startswith("    fedcompress ")]
    return [part.strip() for line in lines for part in line.split("&&")]


def check_command(command: str) -> None:
    """Raise unless the command line understands a command; it is not run."""
    found: click.Command = typer.main.get_command(app)
    words = shlex.split(command)[1:]
    parent = None
    while isinstance(found, click.Group):
        name, words = words[0], words[1:]
        parent = click.Context(found, info_name=name, parent=parent)
        child = found.get_command(parent, name)
        assert child is not None, name
        found = child
    found.make_context(found.name, words, parent=parent)


COMMANDS = list(dict.fromkeys(command for name in NAMES for command in commands_of(ROOT / "docs" / f"{name}.md")))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name, option and number of arguments is one that the command has."""
    monkeypatch.chdir(tmp_path)
    check_command(command)


def test_there_are_some() -> None:
    for start in ("keys register", "keys revoke", "run", "site down", "certs new", "stop", "audit verify"):
        assert any(command.startswith(f"fedcompress {start} ") for command in COMMANDS), start
