"""Makes the codebook of the trellis: models, points, rates and distortions on a Gaussian source.

    python -m benchmarks.codebook > fedcompress/codecs/transform/codebook.py

The published codebook is frozen, since bytes on the wire depend on it; this says where it
came from, and serves to make another one under a new name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

LOWEST = -0.75
LOG_STEP = 4
CLASSES = 16
ESCAPE = 16
SCALE = 1 << 15
LANES = 3000
SWEEPS = 8
HEAD = f'''"""Holds the codebook of the trellis quantizer, made once by ``python -m benchmarks.codebook`` and frozen.

Class c is for a Gaussian source whose standard deviation is ``2^((c - 3) / 4)`` steps. Everything is written as
integers, so that it is the same on every machine.
"""

from __future__ import annotations

import numpy as np

LOG_STEP = {LOG_STEP}  # classes in each octave of the standard deviation
LOWEST = {LOWEST}  # log2 of the standard deviation of class 0, in steps
CLASSES = {CLASSES}  # classes that have a table; higher ones use these, and send low bits as they are
ESCAPE = {ESCAPE}  # this magnitude stands for itself and all larger ones
'''


def _initial(sigma: float) -> np.ndarray[Any, Any]:
    return np.r_[0.7, 1.5 + min(1.2, 2 / sigma) * np.arange(1, ESCAPE + 1)]


def _counts(histogram: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Integers >= 1 that add up to ``SCALE``."""
    out = np.maximum(np.floor(histogram / histogram.sum() * SCALE), 1).astype(np.int64)
    out[out.argmax()] += SCALE - out.sum()
    return out


def _heavier(tables: np.ndarray[Any, Any], c: int, q: int) -> np.ndarray[Any, Any]:
    """A little of the next octave: the tails of real updates are heavier than Gaussian ones."""
    up, far = tables[min(c + 2, CLASSES - 1), q], tables[min(c + 4, CLASSES - 1), q]
    mixed: np.ndarray[Any, Any] = 0.97 * tables[c, q] + 0.02 * up + 0.01 * far
    return mixed


def make(lanes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Tables [class, quantizer, magnitude], offsets in 1/256 steps, rates and distortions in 1/4096."""
    from fedcompress.codecs.transform import trellis

    draw = np.random.default_rng(7).standard_normal((trellis.SEGMENT, lanes))
    lengths = np.full(lanes, trellis.SEGMENT)
    tables = np.ones((CLASSES, 2, ESCAPE + 1), np.int64)
    offsets = np.zeros((CLASSES, 2, 3), np.int64)
    curve = np.zeros((2, CLASSES), np.int64)
    for c in range(CLASSES):
        sigma = 2 ** (LOWEST + c / LOG_STEP)
        values, classes = draw * sigma, np.full(lanes, c)
        costs = np.zeros(tables.shape)
        costs[c] = _initial(sigma)
        for _ in range(SWEEPS):
            path = trellis.search(values, lengths, classes, costs)
            magnitude, bits = np.abs(path.k), 0.0
            for q in (0, 1):
                symbols = np.minimum(magnitude[path.quantizer == q], ESCAPE)
                histogram = np.bincount(symbols, minlength=ESCAPE + 1)
                tables[c, q] = _counts(histogram + 0.3)
                costs[c, q] = np.log2(SCALE / tables[c, q]) + (np.arange(ESCAPE + 1) > 0)
                bits += float(histogram @ costs[c, q])
        point = 2.0 * magnitude - (path.quantizer & (magnitude > 0))
        for q in (0, 1):
            for level in (1, 2):
                cell = (path.quantizer == q) & (np.minimum(magnitude, 2) == level)
                if cell.any():
                    offsets[c, q, level] = round(256 * float((np.abs(values) - point)[cell].mean()))
        point += offsets[c][path.quantizer, np.minimum(magnitude, 2)] / 256
        distortion = np.square(np.abs(values) - point).mean()
        curve[:, c] = round(4096 * bits / values.size), round(4096 * float(distortion))
    tables = np.stack([[_counts(_heavier(tables, c, q)) for q in (0, 1)] for c in range(CLASSES)])
    return {"tables": tables, "offsets": offsets, "rates": curve[0], "distortions": curve[1]}


def _bootstrap() -> None:
    """Stands in for the codebook that does not exist yet."""
    book = ModuleType("fedcompress.codecs.transform.codebook")
    vars(book).update(CLASSES=CLASSES, ESCAPE=ESCAPE, LOG_STEP=LOG_STEP, LOWEST=LOWEST)
    vars(book).update(TABLES=np.ones((CLASSES, 2, ESCAPE + 1), np.int64), OFFSETS=np.zeros((CLASSES, 2, 3)))
    vars(book).update(RATES=np.zeros(CLASSES), DISTORTIONS=np.ones(CLASSES))
    sys.modules[book.__name__] = book


def main() -> None:
    """Entry point."""
    _bootstrap()
    book = make(LANES)
    print(HEAD)
    print("# How often each magnitude occurs, of 32768, shape (CLASSES, 2, ESCAPE + 1): class, quantizer, magnitude.")
    print("# fmt: off")
    print("TABLES = np.array([")
    for pair in book["tables"].tolist():
        print("    [" + ",\n     ".join(str(line) for line in pair) + "],")
    print("], np.int64)\n# fmt: on\n")
    print(
        "# Mean of a cell minus its point, in steps, shape (CLASSES, 2, 3): class, quantizer, magnitude 0, 1, or more."
    )
    print("OFFSETS = (")
    print("    np.array(\n        [")
    for pair in book["offsets"].tolist():
        print(f"            {pair},")
    print("        ],\n        np.float32,\n    )\n    / 256\n)\n")
    headings = {
        "rates": "Bits an entry, without low bits, shape (CLASSES,).",
        "distortions": "Squared error an entry, in squared steps, shape (CLASSES,).",
    }
    for name, heading in headings.items():
        print(f"# {heading}\n{name.upper()} = np.array({book[name].tolist()}) / 4096\n")


if __name__ == "__main__":
    main()
