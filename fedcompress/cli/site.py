"""``fedcompress site`` has the commands that a site team needs; ``clients.commands`` runs them in another process.

Only options are declared here: the library does not know the applications, and ``--help`` imports nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedcompress.cli.help import SITE_SECTION, App
from fedcompress.cli.kit import join, kit
from fedcompress.runtime.app_commands import encode_command, execute

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="Path of site.toml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Connect without TLS; for networks that are your own.")]
Certificates = Annotated[Path | None, typer.Option(help="PEM file with the SuperLink's root certificates.")]
Key = Annotated[Path | None, typer.Option(help="The SuperNode's private key.")]


# Keys of site.toml by the options of ``init`` that set them.
_ANSWERS = {
    "name": "site.name",
    "state_dir": "site.state_dir",
    "model": "model.path",
    "dtype": "model.dtype",
    "quantization": "model.quantization",
    "train": "data.train",
    "heldout": "data.heldout",
    "text": "data.text",
    "label": "data.label",
    "prompt": "data.prompt",
    "completion": "data.completion",
    "messages": "data.messages",
    "ranks": "engine.ranks",
    "zero_stage": "engine.zero_stage",
    "micro_batch": "engine.micro_batch",
    "threads": "engine.threads",
    "max_update_norm": "privacy.max_update_norm",
    "key": "identity.key",
    "coordinator": "identity.coordinator",
    "superlink": "superlink.address",
    "root_certificates": "superlink.root_certificates",
    "node_key": "superlink.node_key",
}


def register(app: App) -> None:
    """Add the group of commands to the app."""
    group = App(help="Run a site: init, kit, join, doctor, up, status, logs, export, down, train.")
    for command in (init, kit, join, doctor, up, status, logs, export, down, train, worker, node):
        group.add(command)
    app.add_group(group, "site", section=SITE_SECTION)


def _execute(name: str, options: dict[str, Any]) -> None:
    """Run a command of a site in place of this process."""
    execute("clients.commands", *encode_command(name, options))


def init(
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")] = Path("site.toml"),
    name: Annotated[str | None, typer.Option(help="Name of the site, unique in the federation.")] = None,
    state_dir: Annotated[str | None, typer.Option(help="Folder for its state, relative to the file.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: a folder, a GGUF file, or a hub id.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    quantization: Annotated[str | None, typer.Option(help="none, 8bit or 4bit.")] = None,
    train: Annotated[str | None, typer.Option(help="Training rows, relative to the file.")] = None,
    heldout: Annotated[str | None, typer.Option(help="Held-out rows; empty: cut from the training rows.")] = None,
    text: Annotated[str | None, typer.Option(help="Key of the text in a row.")] = None,
    label: Annotated[str | None, typer.Option(help="Key of the class name.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Key of the prompt.")] = None,
    completion: Annotated[str | None, typer.Option(help="Key of the completion.")] = None,
    messages: Annotated[str | None, typer.Option(help="Key of a chat's messages.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Training processes.")] = None,
    zero_stage: Annotated[int | None, typer.Option(help="DeepSpeed ZeRO stage, 0 to 3.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Examples a process handles at once; 0: as fit.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a process.")] = None,
    max_update_norm: Annotated[float | None, typer.Option(help="Norm that updates are clipped to; 0: none.")] = None,
    key: Annotated[str | None, typer.Option(help="This site's private key, of `fedcompress keys new`.")] = None,
    coordinator: Annotated[str | None, typer.Option(help="The coordinator's public key.")] = None,
    superlink: Annotated[str | None, typer.Option(help="HOST:PORT of the SuperLink.")] = None,
    root_certificates: Annotated[str | None, typer.Option(help="PEM file of its root certificates.")] = None,
    node_key: Annotated[str | None, typer.Option(help="The SuperNode's private key.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: defaults for what is not given.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: Json = False,
) -> None:
    """Ask what a site needs, and write a commented site.toml.

    What is given as an option is not asked for. Without a terminal nothing is asked.

    Examples:
      fedcompress site init
      fedcompress site init --name north --model ./smollm2 --train train.jsonl --yes -o north.toml
    """
    options = locals()
    answers = {key: options[option] for option, key in _ANSWERS.items() if options[option] is not None}
    _execute("init", {"out": out, "answers": answers, "yes": yes, "force": force, "as_json": as_json})


def doctor(
    site: SiteFile,
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink.")] = "",
    insecure: Insecure = False,
    root_certificates: Certificates = None,
    auth_supernode_private_key: Key = None,
    run_template: Annotated[Path | None, typer.Option(help="The run's template: what must fit it is compared.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of an example, as the run has it.")] = 64,
    as_json: Json = False,
) -> None:
    """Check what the site needs, a line each, with what to do. Exit 0 only if nothing fails.

    Examples:
      fedcompress site doctor site.toml
      fedcompress site doctor site.toml --superlink coordinator.example:8000 --run-template initial
      fedcompress site doctor site.toml --json
    """
    _execute("doctor", locals())


def up(
    site: SiteFile,
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink, if site.toml has none.")] = "",
    insecure: Insecure = False,
    root_certificates: Certificates = None,
    auth_supernode_private_key: Key = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background, until `site down`.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --detach: print JSON.")] = False,
) -> None:
    """Connect the site: its SuperNode and its warm worker, until Ctrl-C. The connection is TLS unless you say not.

    Examples:
      fedcompress site up site.toml --superlink coordinator.example:8000 --root-certificates ca.crt
      fedcompress site up site.toml --superlink 127.0.0.1:8000 --insecure
      fedcompress site up site.toml --superlink coordinator.example:8000 --auth-supernode-private-key node.key --detach
    """
    _execute("up", locals())


def down(
    site: SiteFile,
    timeout: Annotated[float, typer.Option(help="Seconds until it is killed.")] = 30.0,
    as_json: Json = False,
) -> None:
    """End what `site up` has started. Exit 1 if there is nothing to end.

    Example:
      fedcompress site down site.toml
    """
    _execute("down", locals())


def status(
    site: SiteFile,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between looks.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Say what the site's worker does: progress, traffic, memory, its last error. Exit 1 if none answers.

    Examples:
      fedcompress site status site.toml
      fedcompress site status site.toml --watch
      fedcompress site status site.toml --json
    """
    _execute("status", locals())


def export(
    site: SiteFile,
    out: Annotated[str, typer.Option("-o", "--out", help="Folder to write.")],
    run_name: Annotated[str, typer.Option("--run", help="Name of the run; else the one heard of last.")] = "",
    template: Annotated[str, typer.Option(help="The run's initial adapter, where it has constants.")] = "",
    as_json: Json = False,
) -> None:
    """Write the version of a run that this site holds, as a stock PEFT folder with its card.

    It is the run's last version once `status` says that the run has ended. The coordinator is not asked.

    Examples:
      fedcompress site export site.toml -o adapter
      fedcompress site export site.toml -o adapter --run summer --json
    """
    _execute("export", locals())


def logs(
    site: SiteFile,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And what comes, until Ctrl-C.")] = False,
    rank: Annotated[int | None, typer.Option(help="Only of this rank.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="The last so many.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="As they are in the file, a JSON object a line.")] = False,
) -> None:
    """Show what the site's worker and its ranks wrote.

    Examples:
      fedcompress site logs site.toml -f
      fedcompress site logs site.toml --rank 0 --lines 200
      fedcompress site logs site.toml --json
    """
    _execute("logs", locals())


def train(
    site: SiteFile,
    template: Annotated[Path, typer.Option(help="Folder that `fedcompress template` makes.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the trained adapter.")] = Path("local-adapter"),
    local: Annotated[bool, typer.Option("--local", help="Without a coordinator; must be said.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds of so many steps, each with an evaluation.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimizer steps of a round.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Examples a step, over all processes.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 2e-3,
    optimizer: Annotated[str, typer.Option(help="See `fedcompress optimizers`.")] = "adamw8bit",
    optimizer_state: Annotated[str, typer.Option(help="Between rounds: keep or reset.")] = "keep",
    schedule: Annotated[str, typer.Option(help="Of the learning rate, over all rounds.")] = "constant",
    clip: Annotated[float, typer.Option(help="Norm of the gradient; 0: not clipped.")] = 1.0,
    max_length: Annotated[int, typer.Option(help="Tokens of an example.")] = 64,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    as_json: Json = False,
) -> None:
    """Train on this site's rows alone: the baseline that a federation has to beat. Writes a stock PEFT folder.

    Examples:
      fedcompress site train site.toml --local --template initial --steps 100
      fedcompress site train site.toml --local --template initial --rounds 5 --steps 20 --lr 1e-3 -o baseline --json
    """
    _execute("train", locals())


def worker(
    site: SiteFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print the command as JSON instead of running it.")] = False,
) -> None:
    """Run a site's worker in the foreground, until Ctrl-C.

    `site up` and a SuperNode start one by themselves; starting it by hand loads the
    model earlier, and keeps it across restarts of the SuperNode.

    Example:
      fedcompress site worker site.toml
    """
    words = ["--site", str(site.resolve())]
    if as_json:
        print(json.dumps([sys.executable, "-m", "clients.worker.main", *words]))
        return
    execute("clients.worker.main", *words)


def node(
    site: SiteFile,
    node_rank: Annotated[int, typer.Option(help="Number of this machine, from 1.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the command as JSON instead of running it.")] = False,
) -> None:
    """Run the ranks of a further machine of a site, until Ctrl-C: they get their work from node 0's worker.

    Its site.toml is as on node 0, with paths of this machine; `engine.nodes` and `engine.rendezvous` say of which
    machines a site consists.

    Example:
      fedcompress site node site.toml --node-rank 1
    """
    words = ["--site", str(site.resolve()), "--node-rank", str(node_rank)]
    if as_json:
        print(json.dumps([sys.executable, "-m", "clients.worker.node_agent", *words]))
        return
    execute("clients.worker.node_agent", *words)
