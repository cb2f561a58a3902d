"""``fedcompress demo`` runs a whole federation on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedcompress.cli.help import RUN_SECTION, App

Task = Annotated[str, typer.Option(help="medmcqa-department (a classifier) or chat (a language model).")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Connect without TLS and node keys, made for each run.")]


def register(app: App) -> None:
    """Add the command to the app."""
    app.add(demo, section=RUN_SECTION)


def demo(
    rounds: Annotated[int, typer.Option(help="Rounds of training; 0: as the task has them.")] = 0,
    sites: Annotated[int, typer.Option(help="Sites, each a hospital with its own questions (1 to 8).")] = 3,
    codec: Annotated[str, typer.Option(help="Codec spec or preset, see `fedcompress codecs`.")] = "lora-transform",
    downlink_codec: Annotated[str, typer.Option(help="Codec towards the sites; default: what goes with --codec.")] = "",
    rule: Annotated[str, typer.Option(help="Merge rule, see `fedcompress rules`.")] = "lora-ridge",
    space: Annotated[
        str, typer.Option(help="Where elementwise rules merge LoRA modules: factors or product.")
    ] = "factors",
    steps: Annotated[int, typer.Option(help="Optimizer steps a site makes in a round; 0: as the task has them.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    task: Task = "medmcqa-department",
    port: Annotated[int, typer.Option(help="Port of the SuperLink; 0 takes a free one.")] = 0,
    insecure: Insecure = False,
    out: Annotated[Path, typer.Option(help="Folder for result.json, accuracy.png and adapter/.")] = Path("demo-out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json on stdout, progress on stderr.")] = False,
) -> None:
    """Fine-tune across sites on this machine: real SuperLink, SuperNodes, ZeRO ranks and weights.

    Examples:
      fedcompress demo
      fedcompress demo --task chat --out demo-chat
      fedcompress demo --codec none --out demo-plain
      fedcompress demo --rounds 10 --codec "topk(density=0.05)|ternary; head: int(bits=4)" --json
    """
    from fedcompress.demo.run import DemoOptions, run_demo
    from fedcompress.demo.view import DemoView

    options = DemoOptions(
        out=out,
        task=task,
        rounds=rounds,
        sites=sites,
        codec=codec,
        downlink_codec=downlink_codec,
        rule=rule,
        space=space,
        steps=steps,
        seed=seed,
        port=port,
        insecure=insecure,
    )
    with DemoView(options) as view:
        result: dict[str, Any] = run_demo(options, view.on_event)
    if as_json:
        print(json.dumps(result))
    view.summary(result)
