"""``fedcompress``: the root command, and how errors are shown."""

from __future__ import annotations

import os
import sys

import click
import typer

from fedcompress.cli import (
    audit,
    certs,
    coordinator,
    demo,
    evaluate,
    experiment,
    files,
    keys,
    merge,
    partition,
    plan,
    site,
    tables,
    template,
)
from fedcompress.errors import FedCompressError
from fedcompress.runtime.app_commands import DEBUG, STOPPED, exit_code

app = typer.Typer(
    name="fedcompress",
    help="Compressed federated fine-tuning for Flower, PEFT and DeepSpeed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
coordinator.register(app)
demo.register(app)
evaluate.register(app)
experiment.register(app)
files.register(app)
merge.register(app)
partition.register(app)
plan.register(app)
tables.register(app)
template.register(app)
site.register(app)
keys.register(app)
audit.register(app)
certs.register(app)


def main() -> None:
    """Run a command: exit 0 on success, 2 on bad input, 1 on other failures, 130 on Ctrl-C."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    debug = DEBUG in sys.argv
    args = [a for a in sys.argv[1:] if a != DEBUG]
    try:
        code = app(args=args, standalone_mode=False) or 0
        if code == STOPPED:  # typer returns it after Ctrl-C
            print("\nstopped", file=sys.stderr)
        raise SystemExit(code)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except FedCompressError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from None
