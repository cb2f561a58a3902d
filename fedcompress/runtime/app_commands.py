"""The command line runs commands of an application, which the library must not import, as ``python -m`` in its place.

Options travel as one JSON object: ``encode_command`` and ``execute`` are the end of the command line, ``run_command``
is the end of the application.
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

from fedcompress.errors import ConfigError, FedCompressError, LockedError, MismatchError, MissingPackageError, one_of

DEBUG = "--debug"  # option of every command: errors are shown with their traceback
STOPPED = 130  # exit code after Ctrl-C, as shells have it


def exit_code(error: FedCompressError) -> int:
    """Return the exit code of a command that failed: 2 on bad input, 1 on other failures."""
    return 2 if isinstance(error, ConfigError | LockedError | MismatchError | MissingPackageError) else 1


def execute(module: str, *words: str) -> None:
    """Run ``python -m module`` in place of this process, which does not return.

    The app's folder comes first on the module path; the working directory stays the user's.

    Args:
        module: full name of a module of the application.
        words: command line arguments.
    """
    from fedcompress.runtime.flower_app import app_folder

    paths = [str(app_folder()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *words])


def encode_command(name: str, options: dict[str, Any]) -> tuple[str, str]:
    """Encode a command and its options as the arguments that ``execute`` passes to ``run_command``.

    Args:
        name: of the command.
        options: values that JSON knows, or paths; ``--debug`` of this process's own command line is added.

    Returns:
        The name, and the options as JSON.
    """
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    return name, json.dumps({**plain, "debug": DEBUG in sys.argv})


def run_command(package: str, names: Sequence[str], argv: list[str]) -> int:
    """Run a command of an application: ``package.NAME.run(Options(...))``.

    Args:
        package: where the modules of the commands are.
        names: of all commands.
        argv: the command's name, and its options as JSON.

    Returns:
        The exit code: the command's own, 2 on bad input, 1 on other failures, 130 after Ctrl-C.

    Raises:
        ConfigError: there is no such command.
        FedCompressError: the command failed, and ``--debug`` asks for the traceback.
    """
    name, options = argv[0], json.loads(argv[1])
    if name not in names:
        raise ConfigError("command", name, one_of(names, name))
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
