"""Entry point of ``fedcompress site``: ``python -m clients.commands NAME OPTIONS``, with options as JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys

import click

from fedcompress.errors import ConfigError, FedCompressError, LockedError, MismatchError, MissingPackageError

NAMES = ("doctor", "down", "init", "logs", "status", "train", "up")


def main(argv: list[str]) -> int:
    """Run a command: exit 2 on bad input, 1 on other failures, 130 on Ctrl-C."""
    name, options = argv[0], json.loads(argv[1])
    if name not in NAMES:
        raise ConfigError("command", name, f"must be one of {list(NAMES)}")
    debug = options.pop("debug", False)
    command = importlib.import_module(f"clients.commands.{name}")
    try:
        code = int(command.run(command.Options(**options)))
        sys.stdout.flush()
        return code
    except FedCompressError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | LockedError | MismatchError | MissingPackageError) else 1
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
