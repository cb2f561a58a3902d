"""Help texts are laid out by click, but for what click and typer get wrong in plain text.

Commands are listed in sections, each example stands on a line of its own, and brackets around defaults are not
escaped. Rich is not imported, so ``--help`` stays fast, and prints the same to a terminal and into a pipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

# Sections of ``fedcompress --help``, in this order.
RUN_SECTION = "Run a federation"
SITE_SECTION = "Be a site"
FILES_SECTION = "Files"
LOOKUP_SECTION = "Look things up"
SECTIONS = (RUN_SECTION, SITE_SECTION, FILES_SECTION, LOOKUP_SECTION)

_EXAMPLES = re.compile(r"^Examples?:$", re.MULTILINE)
_NOTES = re.compile(r"\\?(\[(?:default: |required)[^\]]*\])")  # as [default: 3; x>=1]; typer escapes them for Rich
# What stands for a space and a hyphen where a line may not be broken, until the line is written.
_NO_BREAK = str.maketrans(" -", "\ue000\ue001")
_BREAKABLE = str.maketrans("\ue000\ue001", " -")


class HelpFormatter(click.HelpFormatter):
    """A help formatter writes the parts of a help text, with wrapped prose and examples as they are."""

    def write_text(self, text: str) -> None:
        """Write prose as wrapped paragraphs, and the lines below ``Examples:`` one by one, however long they are."""
        heading = _EXAMPLES.search(text)
        if heading is None:
            super().write_text(text)
            return
        if prose := text[: heading.start()].rstrip():
            super().write_text(prose)
            self.write_paragraph()
        margin = " " * self.current_indent
        self.write(f"{margin}{heading.group()}\n")
        for line in text[heading.end() :].splitlines():
            if line.strip():
                self.write(f"{margin}  {line.strip()}\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write a definition list in which a note such as ``[default: 3]`` is plain and stays on one line.

        Args:
            rows: terms with their definitions.
            col_max: widest column of terms, in characters.
            col_spacing: characters between both columns.
        """
        whole = [(term, _NOTES.sub(lambda note: note[1].translate(_NO_BREAK), text)) for term, text in rows]
        super().write_dl(whole, col_max, col_spacing)

    def write(self, string: str) -> None:
        """Append text as it is to be printed."""
        super().write(string.translate(_BREAKABLE))


class _Context(click.Context):
    formatter_class = HelpFormatter


class Command(TyperCommand):
    """A command whose help text is laid out by ``HelpFormatter``; it has no parts of its own."""

    context_class = _Context


class CommandGroup(TyperGroup):
    """A group lists its commands in sections, if they have any."""

    context_class = _Context

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list of commands for each section; commands without a section come last, as ``Commands``."""
        sections: dict[str, list[tuple[str, click.Command]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                section = getattr(command, "rich_help_panel", None)
                sections.setdefault(section if section in SECTIONS else "Commands", []).append((name, command))
        width = max((len(name) for commands in sections.values() for name, _ in commands), default=0)
        for section in (*SECTIONS, "Commands"):
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - 6 - width))
                for name, command in sections.get(section, [])
            ]
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows)


class App(typer.Typer):
    """An app, or a group of commands in one, whose help texts are plain."""

    def __init__(self, help: str, **settings: Any) -> None:
        super().__init__(cls=CommandGroup, help=help, no_args_is_help=True, rich_markup_mode=None, **settings)

    def add(self, function: Any, name: str | None = None, *, section: str | None = None) -> None:
        """Add a command.

        Args:
            function: its parameters are arguments and options, and its docstring is the help text.
            name: of the command; that of the function if not given.
            section: of ``SECTIONS``, in which the app lists the command.
        """
        self.command(name=name or function.__name__, cls=Command, rich_help_panel=section)(function)

    def add_group(self, group: App, name: str, *, section: str | None = None) -> None:
        """Add a group of commands.

        Args:
            group: the commands.
            name: of the group.
            section: of ``SECTIONS``, in which the app lists the group.
        """
        group.callback()(lambda: None)  # without it, typer makes a command of a group that has only one
        self.add_typer(group, name=name, rich_help_panel=section)
