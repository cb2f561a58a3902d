"""How the command line reaches an application that the library does not import: as ``python -m`` in its place.

Options travel as JSON. ``execute`` is this end, ``run_command`` the application's.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fedcompress.errors import ConfigError, FedCompressError, LockedError, MismatchError, MissingPackageError

DEBUG = "--debug"
STOPPED = 130  # exit code after Ctrl-C


def exit_code(error: FedCompressError) -> int:
    """2 on bad input, 1 on other failures."""
    return 2 if isinstance(error, ConfigError | LockedError | MismatchError | MissingPackageError) else 1


def execute(module: str, *words: str) -> None:
    """Become ``python -m module``, with the app's folder on the path and the user's folder as it is."""
    from fedcompress.runtime.flower_app import app_folder

    paths = [str(app_folder()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *words])


def as_words(name: str, options: dict[str, Any]) -> tuple[str, str]:
    """A command and its options for ``execute``."""
    written = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    return name, json.dumps({**written, "debug": DEBUG in sys.argv})


def run_command(package: str, names: Sequence[str], argv: list[str]) -> int:
    """Run ``package.NAME.run(Options(...))``.

    Returns:
        Its exit code; 2 on bad input, 1 on other failures, 130 on Ctrl-C.
    """
    name, options = argv[0], json.loads(argv[1])
    if name not in names:
        raise ConfigError("command", name, f"must be one of {list(names)}")
    debug = options.pop("debug", False)
    command = importlib.import_module(f"{package}.{name}")
    try:
        code = int(command.run(command.Options(**options)))
        sys.stdout.flush()
        return code
    except FedCompressError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        print("\nstopped", file=sys.stderr)
        return STOPPED
