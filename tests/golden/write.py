"""Writes golden files that do not exist yet; never replaces one. Run by hand: ``make golden``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from fedcompress.adapters import seeded_init
from fedcompress.pipeline.updates import decode_update
from fedcompress.types import state_digest
from tests.golden.cases import ADAPTER_FILE, SEEDED, adapter_file, cases, layout_of

HERE = Path(__file__).parent


def main() -> None:
    """Entry point."""
    for name, data in cases():
        path = HERE / name
        if not path.exists():
            path.write_bytes(data)
            print(f"wrote {name}: {len(data)} bytes")
    path = HERE / ADAPTER_FILE
    if not path.exists():
        with TemporaryDirectory() as work:
            path.write_bytes(adapter_file(Path(work)))
    path = HERE / "decoded.json"
    digests = json.loads(path.read_text()) if path.exists() else {}
    for file in HERE.glob("*.fcu"):
        if file.name not in digests and not file.name.startswith(("snapshot", "adapter")):
            layout = layout_of(file.name)
            digests[file.name] = state_digest(layout, decode_update(file.read_bytes(), layout)[1]).hex()
    path.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    seeded = HERE / "seeded_init.json"
    if not seeded.exists():
        start = seeded_init(SEEDED, 7)["m.lora_A.weight"]
        seeded.write_text(json.dumps({"seed": 7, "values": [float(v).hex() for v in start.ravel()]}) + "\n")


if __name__ == "__main__":
    main()
