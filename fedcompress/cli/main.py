"""``fedcompress`` is the root command; it also shows errors and sets exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated

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
from fedcompress.cli.help import App
from fedcompress.errors import FedCompressError
from fedcompress.runtime.app_commands import DEBUG, STOPPED, exit_code

app = App(
    help="Compressed federated fine-tuning for Flower, PEFT and DeepSpeed.",
    name="fedcompress",
    pretty_exceptions_enable=False,
)
# Within a section of the help text, commands are listed in this order.
for module in (
    template,
    coordinator,
    keys,
    certs,
    audit,
    demo,
    experiment,
    site,
    files,
    merge,
    evaluate,
    partition,
    tables,
    plan,
):
    module.register(app)


def _print_version(is_set: bool) -> None:
    """Print the version of the library, and end the command."""
    if is_set:
        import fedcompress

        print(f"fedcompress {fedcompress.__version__}")
        raise typer.Exit


@app.callback()
def set_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and end.")
    ] = False,
) -> None:
    """Take the options of the root command."""
    del version


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
