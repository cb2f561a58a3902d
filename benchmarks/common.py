"""The shape that every benchmark prints."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fedcompress.errors import ConfigError


def environment() -> dict[str, Any]:
    """Machine and versions."""
    model = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as stream:
            model = next((line.split(":")[1].strip() for line in stream if line.startswith("model name")), "")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {n: metadata.version(n) for n in ("torch", "deepspeed", "flwr", "peft", "numpy", "constriction")},
    }


def row(name: str, value: float, unit: str, **more: Any) -> dict[str, Any]:
    """One result; ``more`` may set target, pass, spread and note."""
    return {"name": name, "value": value, "unit": unit, "target": "", "pass": None, "spread": None, "note": "", **more}


def show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print the document, or a table."""
    if as_json:
        print(json.dumps({"environment": environment(), "results": rows}))
        return
    for r in rows:
        mark = {True: "pass", False: "MISS", None: ""}[r["pass"]]
        print(f"{r['name']:<44} {r['value']:>12.4f} {r['unit']:<8} {r['target']:<14} {mark} {r['note']}")


def write_between(path: Path, mark: str, text: str) -> None:
    """Replace what a file has between ``<!-- mark`` and ``<!-- /mark -->``.

    Raises:
        ConfigError: the file has no such marks.
    """
    old = path.read_text(encoding="utf-8")
    start, end = old.find(f"<!-- {mark}"), old.find(f"<!-- /{mark} -->")
    if start < 0 or end < start:
        raise ConfigError("file", path, f"must have lines <!-- {mark} --> and <!-- /{mark} -->")
    head = old[: old.index("\n", start) + 1]
    path.write_text(head + text + old[end:], encoding="utf-8")


def run_parts(parts: Mapping[str, Callable[[Path], list[dict[str, Any]]]], about: str, out: Path) -> None:
    """Command line of a benchmark in parts: ``--parts``, ``--out``, ``--json``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(parts), help=f"of {', '.join(parts)}")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = args.parts.split(",")
    unknown = sorted(set(names) - set(parts))
    if unknown:
        parser.error(f"--parts: {unknown}: must be of {list(parts)}")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        print(f"{name} ...", file=sys.stderr)
        rows += parts[name](args.out)
    show(rows, args.json)


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path, *, across: str, up: str, title: str
) -> None:
    """A picture of lines by label, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for label, (x, y) in lines.items():
        axes.loglog(x, y, "o-", label=label)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
