"""Every figure that the documentation gives for merging, with pass or miss.

python -m benchmarks.merge [--parts speed,forms] [--out DIR] [--json]
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import run_parts
from benchmarks.merge import forms, gauge, growth, oneshot, rounds, speed

PARTS = {
    "speed": speed.rows,
    "forms": forms.table,
    "growth": growth.rows,
    "gauge": gauge.rows,
    "oneshot": oneshot.rows,
    "rounds": rounds.rows,
}

if __name__ == "__main__":
    run_parts(PARTS, __doc__, Path("runs/merge"))
