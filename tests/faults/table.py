"""Prints what ``make chaos`` counted: python -m tests.faults.table FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Rows of equal kind and name are added up."""
    from rich.console import Console
    from rich.table import Table

    path = folder / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    merged: dict[tuple[str, str], tuple[int, str]] = {}
    for row in rows:
        key = (row["kind"], row["name"])
        merged[key] = (merged.get(key, (0, ""))[0] + row["count"], row["note"])
    table = Table("kind", "what", "count", "found", title="faults")
    for (kind, name), (count, note) in sorted(merged.items()):
        table.add_row(kind, name, str(count), note)
    for kind in sorted({kind for kind, _ in merged}):
        table.add_row(kind, "in all", str(sum(c for (k, _), (c, _) in merged.items() if k == kind)), "", style="bold")
    Console(width=120).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
