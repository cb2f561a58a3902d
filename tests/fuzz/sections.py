"""Coverage-guided fuzzing of the decoder: ``make fuzz``.

    python -m tests.fuzz.sections CORPUS [-runs=10000000] [libFuzzer options]

The first byte of an input names a codec, the rest is a section for it. Anything but
``PayloadError``, and any tensor that is not finite, stops the run and leaves the input behind.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedcompress.codecs", "fedcompress.numerics.bfloat16"]):
    from tests.hostile.mutations import payloads, refused_or_decoded

ONE_CLAUSE = {name: p for name, p in payloads().items() if len(p[1]) == 1}
TABLE = list(ONE_CLAUSE.values())
SLICE = 1_000_000  # inputs of one process


def one_input(data: bytes) -> None:
    """Decode one section."""
    if data:
        spec, _ = TABLE[data[0] % len(TABLE)]
        refused_or_decoded(spec, (data[1:],))


def write_corpus(folder: Path) -> None:
    """Honest payloads, so that the search begins behind the first checks."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, (_, sections)) in enumerate(ONE_CLAUSE.items()):
        (folder / name.replace("|", "-")).write_bytes(bytes([number]) + sections[0])


def main() -> None:
    """Entry point: runs beyond ``SLICE`` are shared out to one process after another, on one corpus.

    The instrumentation keeps half a kilobyte of every input, the decoder nothing.
    """
    folder = Path(sys.argv[1] if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "runs/fuzz")
    options = [a for a in sys.argv[1:] if a.startswith("-")]
    runs = next((int(a.removeprefix("-runs=")) for a in options if a.startswith("-runs=")), SLICE)
    write_corpus(folder)
    if runs > SLICE:
        others = [a for a in options if not a.startswith(("-runs=", "-seed="))]
        for number, at in enumerate(range(0, runs, SLICE)):
            size = min(SLICE, runs - at)
            command = [sys.executable, "-m", "tests.fuzz.sections", str(folder), f"-runs={size}", f"-seed={number + 1}"]
            subprocess.run([*command, *others], check=True)
            print(f"{at + size:,} of {runs:,} inputs, all refused or decoded", flush=True)
        return
    found = folder.with_name(f"{folder.name}-found-")
    limits = ["-max_len=512", "-rss_limit_mb=2048", "-timeout=20", f"-artifact_prefix={found}"]
    atheris.Setup([sys.argv[0], str(folder), *limits, *options], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
