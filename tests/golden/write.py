"""Writes golden files that do not exist yet; never replaces one. Run by hand: ``make golden``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from fedcompress.adapters import seeded_init
from fedcompress.pipeline import decode_update
from fedcompress.types import state_digest
from tests.golden.cases import LAYOUT, SEEDED, cases

HERE = Path(__file__).parent


def main() -> None:
    """Entry point."""
    for name, data in cases():
        path = HERE / name
        if not path.exists():
            path.write_bytes(data)
            print(f"wrote {name}: {len(data)} bytes")
    digests = {p.name: "" for p in HERE.glob("*.fcu") if not p.name.startswith("snapshot")}
    for name in digests:
        digests[name] = state_digest(LAYOUT, decode_update((HERE / name).read_bytes(), LAYOUT)[1]).hex()
    known = HERE / "decoded.json"
    if not known.exists() or set(json.loads(known.read_text())) < set(digests):
        known.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    seeded = HERE / "seeded_init.json"
    if not seeded.exists():
        start = seeded_init(SEEDED, 7)["m.lora_A.weight"]
        seeded.write_text(json.dumps({"seed": 7, "values": [float(v).hex() for v in start.ravel()]}) + "\n")


if __name__ == "__main__":
    main()
