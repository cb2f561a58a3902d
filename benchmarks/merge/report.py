"""The tables of docs/results.md, from the benchmark's JSON.

python -m benchmarks.merge --parts gauge,oneshot,rounds --json > merge.json
python -m benchmarks.merge.report merge.json docs/results.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import write_between

Results = list[dict[str, Any]]
COLUMNS = [(data, code) for data in ("intents", "banking", "medmcqa") for code in ("exact", "ternary 5 %")]


def oneshot(results: Results) -> str:
    """Rules by data set and code; the best of a column is bold."""
    found: dict[tuple[str, str], dict[tuple[str, str], tuple[float, float]]] = {}
    for result in results:
        left, _, right = result["name"].partition(": ")
        data, _, code = left.partition(", ")
        rule, _, space = right.rpartition(", ")
        if (data, code) in COLUMNS and rule:
            spread = max(result["spread"]) - min(result["spread"])
            found.setdefault((rule, space), {})[data, code] = (result["value"], spread)
    best = {c: max((r[c][0] for r in found.values() if c in r), default=0.0) for c in COLUMNS}
    lines = [
        "| rule | space | " + " | ".join(f"{d}, {c}" for d, c in COLUMNS) + " |",
        "|---|---" * 1 + "|---" * 6 + "|",
    ]
    order = sorted(found, key=lambda k: -sum(found[k][c][0] for c in COLUMNS if c in found[k]))
    for rule, space in order:
        cells = [_cell(found[rule, space].get(c), best[c]) for c in COLUMNS]
        lines.append(f"| `{rule}` | {space} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(pair: tuple[float, float] | None, best: float) -> str:
    if pair is None:
        return ""
    text = f"{pair[0]:.3f}"
    return (f"**{text}**" if pair[0] == best else text) + f" ± {pair[1] / 2:.3f}"


def gauge(results: Results) -> str:
    """Accuracy, merge error and bytes of each LoRA rule."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        rule, _, what = result["name"].partition(": ")
        for key in ("accuracy after", "merge error", "downlink at"):
            if what.startswith(key):
                found.setdefault(rule, {})[key] = result
    lines = ["| rule | accuracy, 20 rounds | half way | merge error, round 2 | in the last | downlink bytes a round |"]
    lines.append("|---" * 6 + "|")
    for rule, rows in found.items():
        end, error, size = (rows[k] for k in ("accuracy after", "merge error", "downlink at"))
        spread = (max(end["spread"]) - min(end["spread"])) / 2
        half, last = end["note"].split()[0], error["note"].split()[0]
        cells = [f"{end['value']:.3f} ± {spread:.3f}", half, f"{error['value']:.3f}", last, f"{size['value']:,.0f}"]
        lines.append(f"| `{rule}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rounds(results: Results) -> str:
    """Accuracy after 20 rounds, by codec of the sites."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        if result["name"].startswith("rounds, "):
            code, _, rule = result["name"][8:].partition(": ")
            found.setdefault(rule, {})[code] = result
    lines = ["| rule | transform | ternary 5 % | seeds | downlink bytes a round |", "|---|---|---|---|---|"]
    for rule in sorted(found, key=lambda r: -found[r].get("transform", {"value": 0.0})["value"]):
        rows = found[rule]
        shown = [_spread(rows.get(code)) for code in ("transform", "ternary 5 %")]
        note = rows.get("transform", next(iter(rows.values())))
        down = note["note"].split()[0]
        lines.append(f"| `{rule}` | {' | '.join(shown)} | {len(note['spread'])} | {down} |")
    return "\n".join(lines) + "\n"


def _spread(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    text = f"{result['value']:.3f}"
    return text + (f" ± {(max(result['spread']) - min(result['spread'])) / 2:.3f}" if len(result["spread"]) > 1 else "")


def main() -> None:
    """Rewrite what the file has between its marks."""
    results, path = json.loads(Path(sys.argv[1]).read_text())["results"], Path(sys.argv[2])
    for mark, make in (("oneshot", oneshot), ("gauge", gauge), ("rounds", rounds)):
        write_between(path, mark, make(results))


if __name__ == "__main__":
    main()
