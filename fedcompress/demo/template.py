"""Writes the demo's initial adapter in a process of its own, so that the demo stays light.

python -m fedcompress.demo.template FOLDER MODEL LABELS SEED
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(argv: list[str]) -> None:
    """Entry point."""
    from fedcompress.adapters.classifier import write_template

    folder, model, labels, seed = argv
    write_template(Path(folder), Path(model), int(labels), rank=8, targets=("query", "value"), seed=int(seed))


if __name__ == "__main__":
    main(sys.argv[1:])
