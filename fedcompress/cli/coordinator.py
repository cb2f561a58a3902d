"""``fedcompress run``, ``status``, ``stop``, ``history``, ``export`` and ``watch`` are run by ``server.commands``.

Only options are declared here: the library does not know the applications, and ``--help`` imports nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedcompress.cli.help import RUN_SECTION, App
from fedcompress.runtime.app_commands import encode_command, execute

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
State = Annotated[Path, typer.Argument(metavar="DIR", help="State directory, or the CONFIG.toml that names it.")]
Run = Annotated[
    str,
    typer.Option("--run", help="Name of the run; default: that of the CONFIG.toml, else the last that was started."),
]


def register(app: App) -> None:
    """Add the commands to the app."""
    for command in (run, status, stop, history, export, watch):
        app.add(command, section=RUN_SECTION)


def _execute(name: str, options: dict[str, Any]) -> None:
    """Run a command of the coordinator in place of this process."""
    execute("server.commands", *encode_command(name, options))


def _print_keys(is_set: bool) -> None:
    """Print the page with every key of the run config, and end the command."""
    if is_set:
        from fedcompress.config.run_keys import describe_run_keys

        print(describe_run_keys(), end="")
        raise typer.Exit


def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="With [coordinator] and [run].")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted or stopped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, progress on stderr.")] = False,
    keys: Annotated[
        bool, typer.Option("--keys", is_eager=True, callback=_print_keys, help="Print every key of [run], and end.")
    ] = False,
) -> None:
    """Run a federation to its end: start a SuperLink, submit the app, start again what dies.

    Ctrl-C ends all its processes; the round at hand is done again by --resume.

    Examples:
      fedcompress run coordinator.toml
      fedcompress run coordinator.toml --resume --json
      fedcompress run --keys
    """
    del keys
    _execute("run", locals())


def status(
    state: State,
    run_name: Run = "",
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between looks.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Say where a run is: its state and round, who is awaited since when and until when, the last error.

    Examples:
      fedcompress status coordinator.toml
      fedcompress status /var/lib/fedcompress --watch
      fedcompress status /var/lib/fedcompress --json
    """
    _execute("status", locals())


def stop(
    state: State,
    now: Annotated[bool, typer.Option("--now", help="Not after this round, but at once.")] = False,
    timeout: Annotated[float, typer.Option(help="With --now: seconds until it is killed.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Stop a run after its round, or at once. `fedcompress run --resume` goes on with it.

    Examples:
      fedcompress stop /var/lib/fedcompress
      fedcompress stop coordinator.toml --now
    """
    _execute("stop", locals())


def history(
    state: State,
    run_name: Run = "",
    sites: Annotated[bool, typer.Option("--sites", help="A row for each site.")] = False,
    site_rounds: Annotated[
        bool,
        typer.Option("--site-rounds", help="A row for each site in each round: bytes, and those of bf16, fp32, int8."),
    ] = False,
    refusals: Annotated[bool, typer.Option("--refusals", help="What was refused, and why.")] = False,
    as_json: Json = False,
) -> None:
    """Show the rounds of a run: version, sites asked and merged, refusals, bytes, seconds, quality.

    Bytes are those of payload, of what Flower's records add (protocol), and of all else on the links (transport).

    Examples:
      fedcompress history /var/lib/fedcompress
      fedcompress history coordinator.toml --sites
      fedcompress history coordinator.toml --site-rounds --json
      fedcompress history coordinator.toml --refusals
    """
    _execute("history", locals())


def export(
    state: State,
    run_name: Run = "",
    version: Annotated[
        int, typer.Option("--round", help="Version after this round; 0: the start; default: newest.")
    ] = -1,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")] = Path("adapter"),
    merged: Annotated[bool, typer.Option("--merged", help="Full weights instead of an adapter.")] = False,
    model: Annotated[str, typer.Option(help="With --merged: base model, a folder, GGUF file or hub id.")] = "",
    dtype: Annotated[str, typer.Option(help="With --merged: float32, bfloat16 or float16.")] = "float32",
    template: Annotated[
        Path | None, typer.Option(help="The run's initial adapter, if the state directory has no copy.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a published version as a stock PEFT folder, or merged into its base as a stock model folder.

    Examples:
      fedcompress export /var/lib/fedcompress -o adapter
      fedcompress export coordinator.toml --round 3 -o adapter-3 --json
      fedcompress export coordinator.toml --merged --model ./smollm2 -o merged
    """
    _execute("export", locals())


def watch(
    state: State,
    run_name: Run = "",
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    web: Annotated[bool, typer.Option("--web", help="As a read-only web page, until Ctrl-C.")] = False,
    host: Annotated[
        str, typer.Option(help="With --web: address. Any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="With --web: port; 0: a free one.")] = 0,
    token: Annotated[
        str, typer.Option(help="With --web: what requests must carry; better in FEDCOMPRESS_WATCH_TOKEN.")
    ] = "",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="With --web: another name of this server, as of a proxy; repeatable.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write TensorBoard events there, until the run has ended.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Look once and print it; with --web: the address.")] = False,
) -> None:
    """Watch a run: round, sites, bytes, quality, refusals. On this terminal, as a web page, or by TensorBoard.

    Examples:
      fedcompress watch /var/lib/fedcompress
      fedcompress watch coordinator.toml --once --json
      fedcompress watch coordinator.toml --web --port 8080
      fedcompress watch coordinator.toml --tensorboard runs --once
    """
    _execute("watch", {**locals(), "allow_host": allow_host or []})
