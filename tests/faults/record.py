"""What a fault test counted, as lines of JSON for the table that ``make chaos`` prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

VARIABLE = "FEDCOMPRESS_CHAOS_OUT"


def record(kind: str, name: str, count: int, note: str = "") -> None:
    """One row: kills, links, loads, churn or attacks; only if a folder is named by ``FEDCOMPRESS_CHAOS_OUT``."""
    folder = os.environ.get(VARIABLE)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / "rows.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, "name": name, "count": count, "note": note}) + "\n")
