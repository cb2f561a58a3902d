"""Every figure that the documentation gives for optimizers, with pass or miss.

python -m benchmarks.optim [--parts memory,speed] [--out DIR] [--json]
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import run_parts
from benchmarks.optim import across, memory, quality, speed, zero

PARTS = {
    "memory": memory.rows,
    "speed": speed.rows,
    "across": across.rows,
    "quality": quality.rows,
    "zero": zero.rows,
}

if __name__ == "__main__":
    run_parts(PARTS, __doc__, Path("runs/optim"))
