"""Writes the table of optimizers in docs/optimizers.md from the benchmark's JSON.

python -m benchmarks.optim --json > optim.json; python -m benchmarks.optim.table optim.json docs/optimizers.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import write_between
from fedcompress.optim import OPTIMIZERS, parse_optimizer
from fedcompress.optim.table import state_bytes

TASKS = ("letters", "stories260k", "smollm2")


def table(results: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: a row for each call that was trained, with the best loss of each task in bold."""
    losses_by_call: dict[str, dict[str, float]] = {}
    for result in results:
        task, _, call = result["name"].partition(": ")
        if task in TASKS and call.partition("(")[0] in OPTIMIZERS:
            losses_by_call.setdefault(_simplify(call), {})[task] = result["value"]
    tasks = [task for task in TASKS if any(task in r for r in losses_by_call.values())]
    best = {task: min((r[task] for r in losses_by_call.values() if task in r), default=0.0) for task in tasks}
    lines = [
        f"| optimizer | bytes a parameter | placement | {' | '.join(tasks)} |",
        "|---|---|---|" + "---|" * len(tasks),
    ]
    for call, losses in losses_by_call.items():
        each = state_bytes(parse_optimizer(call), (1024, 1024)) / 1024**2
        cells = [_format_cell(losses.get(task), best[task]) for task in tasks]
        lines.append(f"| `{call}` | {each:.2f} | {parse_optimizer(call).placement} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _simplify(call: str) -> str:
    """Return a call with a rank of a quarter of 1024, and without the interval, which is each task's own."""
    call = re.sub(r"rank=\d+", "rank=256", re.sub(r",?update_gap=\d+", "", call))
    return call.replace("(,", "(").replace("()", "")


def _format_cell(value: float | None, best: float) -> str:
    if value is None:
        return ""
    return f"**{value:.3f}**" if value == best else f"{value:.3f}"


def main() -> None:
    """Rewrite the file between the two marks."""
    write_between(Path(sys.argv[2]), "optimizers", table(json.loads(Path(sys.argv[1]).read_text())["results"]))


if __name__ == "__main__":
    main()
