"""Every figure that the documentation gives for codecs, with pass or miss.

    python -m benchmarks.codec [--parts size,speed,distortion] [--out DIR] [--json]

Parts: size and speed need nothing; distortion, transform, training, sweep and options fine-tune real
models on the data sets beside the checkout (see settings/), and keep what they have done in
DIR, so that a second call goes on. training, sweep and options take an hour or more on two cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.codec import distortion, options, size, speed, sweep, training, transform
from benchmarks.common import show

PARTS = {
    "size": size.rows,
    "speed": speed.rows,
    "distortion": distortion.rows,
    "transform": transform.rows,
    "training": training.rows,
    "sweep": sweep.rows,
    "options": options.rows,
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/codec"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = args.parts.split(",")
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        parser.error(f"--parts: {unknown}: must be of {list(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        print(f"{name} ...", file=sys.stderr)
        rows += PARTS[name](args.out)
    show(rows, args.json)


if __name__ == "__main__":
    main()
