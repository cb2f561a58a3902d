"""Every figure that the documentation gives for a site, with pass or miss.

python -m benchmarks.site [--parts overhead,memory,extract,throughput] [--out DIR] [--json]
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import run_parts
from benchmarks.site import extract, memory, overhead, throughput

PARTS = {"overhead": overhead.rows, "memory": memory.rows, "extract": extract.rows, "throughput": throughput.rows}

if __name__ == "__main__":
    run_parts(PARTS, __doc__, Path("runs/site"))
