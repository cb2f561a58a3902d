"""Help texts: commands in sections, examples on lines of their own, defaults without escapes; plain in a pipe."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from fedcompress.cli.help import SECTIONS, App
from fedcompress.cli.main import app

SCRIPT = Path(sys.executable).parent / "fedcompress"


def walk(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group."""
    yield words
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from walk(child, (*words, name))


ROOT_COMMAND = typer.main.get_command(app)
COMMANDS = list(walk(ROOT_COMMAND))


def find(words: tuple[str, ...]) -> click.Command:
    command = ROOT_COMMAND
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def show(words: tuple[str, ...]) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], prog_name="fedcompress")
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_defaults_are_not_escaped_and_stay_on_one_line(words: tuple[str, ...]) -> None:
    text = show(words)
    assert "\\[" not in text
    assert not re.search(r"\[(?:default|required)[^\]]*$", text, re.MULTILINE)
    assert text.isascii()


def test_a_default_is_told() -> None:
    text = show(("demo",))
    assert re.search(r"--sites INTEGER .*\n? *.*\[default: 3\]", text)
    assert "[default: lora-transform]" in text
    assert "[default: medmcqa-department]" in text
    assert "[default: 0; x>=0]" in show(("evaluate",))
    assert re.search(r"-o, --out PATH .*\[required\]", show(("template",)))
    assert "[default: frugal(state=8bit)]" in show(("plan",))


def examples(words: tuple[str, ...]) -> list[str]:
    text = inspect.cleandoc(find(words).help or "")
    return [line.strip() for line in text.splitlines() if line.startswith("  fedcompress ")]


@pytest.mark.parametrize("words", [w for w in COMMANDS if examples(w)], ids=" ".join)
def test_every_example_stands_on_a_line_of_its_own(words: tuple[str, ...]) -> None:
    lines = show(words).splitlines()
    (heading,) = (number for number, line in enumerate(lines) if line in ("  Examples:", "  Example:"))
    assert lines[heading - 1] == ""
    told = lines[heading + 1 : heading + 1 + len(examples(words))]
    assert told == [f"    {example}" for example in examples(words)]
    assert lines[heading + 1 + len(told)] == ""


def test_examples_are_of_their_command() -> None:
    with_examples = [words for words in COMMANDS if examples(words)]
    assert len(with_examples) > 25
    for words in with_examples:
        for example in examples(words):
            assert tuple(shlex.split(example)[1 : 1 + len(words)]) == words


def test_prose_is_wrapped_as_before() -> None:
    text = show(("run",))
    assert "  Run a federation to its end: start a SuperLink, submit the app, start again\n  what dies.\n\n" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_commands_are_listed_in_sections() -> None:
    text = show(())
    sections = re.findall(r"^([A-Z][a-z ]+):\n((?:  .*\n)+)", text, re.MULTILINE)
    listed = {title: [line.split()[0] for line in body.splitlines()] for title, body in sections if title != "Options"}
    assert tuple(listed) == SECTIONS
    assert {"run", "status", "template", "demo", "keys"} <= set(listed["Run a federation"])
    assert listed["Be a site"] == ["site"]
    assert {"encode", "decode", "inspect", "merge"} <= set(listed["Files"])
    assert {"codecs", "rules", "optimizers", "adapters"} <= set(listed["Look things up"])
    assert isinstance(ROOT_COMMAND, click.Group)
    assert sorted(name for names in listed.values() for name in names) == sorted(ROOT_COMMAND.commands)
    columns = {line.index(line.split(None, 1)[1]) for _, body in sections[1:] for line in body.splitlines()}
    assert len(columns) == 1, "descriptions of all sections begin in one column"


def test_a_group_without_sections_lists_its_commands() -> None:
    text = show(("site",))
    assert "\nCommands:\n  init " in text
    assert not any(f"{section}:" in text for section in SECTIONS)


def test_a_group_with_one_command_stays_a_group() -> None:
    group = App(help="One.")

    def only() -> None:
        """Do the only thing."""

    group.add(only)
    outer = App(help="Outer.", name="outer")
    outer.add_group(group, "inner")
    assert "only  Do the only thing." in CliRunner().invoke(outer, ["inner", "--help"]).output


def test_help_is_plain_in_a_pipe() -> None:
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert [line[:40] for line in done.stdout.splitlines()] == [line[:40] for line in show(()).splitlines()]


def test_the_version_is_said() -> None:
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"fedcompress \d+\.\d+\.\d+\n", done.stdout)
