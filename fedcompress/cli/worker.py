"""``fedcompress site``: the worker of a site by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

SiteFile = Annotated[Path, typer.Argument(help="Path of site.toml.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="A site's warm worker.", no_args_is_help=True, rich_markup_mode=None)
    group.command(name="worker")(worker)
    app.add_typer(group, name="site")


def worker(
    site: SiteFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print the command as JSON instead of running it.")] = False,
) -> None:
    """Run a site's worker in the foreground, until Ctrl-C.

    A SuperNode starts one by itself at its first message; starting it by hand loads the
    model earlier, and keeps it across restarts of the SuperNode.

    Example:
      fedcompress site worker site.toml
    """
    from fedcompress.demo.federation import app_folder

    command = [sys.executable, "-m", "clients.worker.main", "--site", str(site.resolve())]
    if as_json:
        print(json.dumps(command))
        return
    os.chdir(app_folder())
    os.execv(sys.executable, command)
