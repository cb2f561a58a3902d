"""Every figure that the documentation gives for codecs, with pass or miss.

    python -m benchmarks.codec [--parts size,speed,distortion] [--out DIR] [--json]

Parts: size and speed need nothing; distortion, transform, training, sweep and options fine-tune real
models on the data sets beside the checkout (see settings/), and keep what they have done in
DIR, so that a second call goes on. training, sweep and options take an hour or more on two cores.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.codec import distortion, options, size, speed, sweep, training, transform, trials
from benchmarks.common import run_parts

PARTS = {
    "size": size.rows,
    "speed": speed.rows,
    "distortion": distortion.rows,
    "transform": transform.rows,
    "training": training.rows,
    "sweep": sweep.rows,
    "options": options.rows,
    "trials": trials.rows,
}

if __name__ == "__main__":
    run_parts(PARTS, __doc__, Path("runs/codec"))
