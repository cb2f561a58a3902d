"""``fedcompress merge`` merges adapters of several sites into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedcompress.cli.help import FILES_SECTION, App

# Facts of the report that are printed, and columns of the modules with the largest errors.
SHOWN = ("path", "peft_type", "rule", "space", "bytes", "parameters", "rank", "merge_error", "contribution", "notes")
ROW = ("name", "rank", "ranks", "truncation_error", "merge_error", "norm", "sign_conflict")


def register(app: App) -> None:
    """Add the command to the app."""
    app.add(merge, section=FILES_SECTION)


def merge(
    paths: Annotated[list[Path], typer.Argument(help="PEFT adapter folders, or .fcu files of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The PEFT folder to write.")],
    rule: Annotated[str, typer.Option(help="exact, flora, fedex, or a merge rule, see `fedcompress rules`.")] = "exact",
    space: Annotated[
        str, typer.Option(help="For rules that merge entries: factors, or product (dense B A, then SVD).")
    ] = "factors",
    rank: Annotated[int | None, typer.Option(help="Rank to keep. [default: all]")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead: share of each module's squared norm to keep, as 0.999.")
    ] = None,
    weights: Annotated[str, typer.Option(help="One for each adapter, as 1,1,2 or 1,-0.5. [default: equal]")] = "",
    as_sum: Annotated[bool, typer.Option("--sum", help="Take weights as they are, not over their sum.")] = False,
    base: Annotated[Path | None, typer.Option(help="What the .fcu files are a difference from.")] = None,
    dtype: Annotated[str, typer.Option(help="To store: float32, bfloat16, float16. [default: float32 factors]")] = "",
    other_bases: Annotated[
        bool, typer.Option("--other-bases", help="Accept different names of the base model.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Also write the report: FILE.json or FILE.png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
) -> None:
    """Merge adapters of several sites into one stock PEFT folder, without the base model.

    Ranks, alphas, rank patterns and rsLoRA may differ. By default the result is exactly the
    weighted mean of the adapters' changes of the weights.

    Examples:
      fedcompress merge north south -o merged
      fedcompress merge north south west.fcu --rank 16 --weights 1,1,2 -o merged --report merge.png
      fedcompress merge task unwanted --weights 1,-0.5 --sum -o merged
      fedcompress merge north south --rule "ties(density=0.2)" --space product --energy 0.999 -o merged
    """
    options: dict[str, Any] = {"rule": rule, "space": space, "rank": rank, "energy": energy}
    options |= {"dtype": dtype, "other_bases": other_bases}
    options |= {"weights": _parse_weights(weights), "as_sum": as_sum, "base": base}
    _run(paths, out, options, report, as_json)


def _run(paths: list[Path], out: Path, options: dict[str, Any], report: Path | None, as_json: bool) -> None:
    """Merge with the options of ``merge_adapters``, and write and print the report."""
    from fedcompress.cli.files import progress_bar
    from fedcompress.errors import ConfigError
    from fedcompress.files.merge import merge_adapters

    if report is not None and report.suffix not in (".json", ".png"):
        raise ConfigError("--report", report, "must be a name that ends in .json or .png")
    with progress_bar("merging") as progress:
        facts = merge_adapters(paths, out, progress=progress, **options)
        if report is not None:
            _write(facts, report)
    _print(facts, as_json)


def _parse_weights(text: str) -> list[float] | None:
    """Return the weights of ``--weights``, or None if there are none; raise ``ConfigError`` if they are no numbers."""
    from fedcompress.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError as error:
        raise ConfigError("--weights", repr(text), "must be numbers with commas between them, as 1,1,2") from error


def _write(facts: dict[str, Any], report: Path) -> None:
    """Write the report as a picture or as JSON."""
    if report.suffix == ".png":
        from fedcompress.files.merge.plot import draw

        draw(facts, report)
        return
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _print(facts: dict[str, Any], as_json: bool) -> None:
    """Print the report: all of it as JSON, or its main facts and the modules with the largest errors."""
    from fedcompress.cli.files import show

    if as_json:
        print(json.dumps(facts))
        return
    shown: dict[str, Any] = {key: facts[key] for key in SHOWN if facts.get(key) not in (None, [])}
    if "contribution" in shown:
        shown["contribution"] = [f"{value:.3f}" for value in shown["contribution"]]
    shown["sites"] = facts["sites"]
    known = [m for m in facts["modules"] if m["norm"] is not None]  # DoRA has no figures
    worst = sorted(known, key=lambda m: m["merge_error"] or 0.0, reverse=True)[:10]
    if worst:
        shown["largest errors"] = [{key: module[key] for key in ROW} for module in worst]
    show(shown, False)
