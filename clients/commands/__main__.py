"""Entry point of ``fedcompress site``, which runs ``python -m clients.commands NAME OPTIONS``, with options as JSON."""

from __future__ import annotations

import sys

from fedcompress.runtime.app_commands import run_command

NAMES = ("doctor", "down", "evaluate", "export", "init", "join", "logs", "status", "train", "up")


def main(argv: list[str]) -> int:
    """Run a command; return 2 on bad input, 1 on other failures, 130 on Ctrl-C."""
    return run_command("clients.commands", NAMES, argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
