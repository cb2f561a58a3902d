"""The transform code against the table of our first measurement, at equal real bytes, and its speed."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.codec.deltas import Delta, deltas
from benchmarks.codec.measure import captured, encoded, header_for
from benchmarks.codec.speed import timed
from benchmarks.common import row
from fedcompress.codecs import CodecSpec, decode_sections, encode_sections
from fedcompress.pipeline.updates import decode_update

# Bits a parameter and captured share that the first, sequential version of the code reached.
TABLE = {
    "M, round 1": ((0.17, 0.49), (0.26, 0.58), (0.51, 0.73)),
    "M, round 3": ((0.18, 0.48), (0.29, 0.58), (0.6, 0.75)),
    "M, round 6": ((0.2, 0.43), (0.32, 0.57), (0.68, 0.77)),
    "S, round 1": ((0.14, 0.65), (0.28, 0.78), (0.44, 0.84)),
}
LAYERS = (2, 15, 27)  # of S, where that table was measured


def rows(out: Path) -> list[dict[str, Any]]:
    """Captured energy at the table's bits, by section bytes; then seconds on the 5M-parameter update."""
    found = []
    for delta in deltas(out, "MS"):
        for bits, share in TABLE.get(delta.name, ()):
            value, spent = _captured(delta, bits)
            name = f"{delta.name}: captured at {bits:g} bits"
            found.append(
                row(name, value, "", target=f">= {share}", note=f"{spent:.4f} used", **{"pass": value >= share})
            )
    for delta in deltas(out, "S"):
        ternary = captured(delta.tensors, encoded("topk(density=0.05)|ternary", delta.layout, delta.tensors)[1])
        found.append(row(f"{delta.name}: ternary 5 %, captured", ternary, ""))
    return found + _seconds(deltas(out, "S")[0])


def _captured(delta: Delta, bits: float) -> tuple[float, float]:
    layout, tensors = delta.layout, delta.tensors
    if delta.name.startswith("S"):
        kept = tuple(t for t in layout.tensors if any(f"layers.{i}." in t.name for i in LAYERS))
        layout, tensors = type(layout)(kept), {t.name: tensors[t.name] for t in kept}
    spec = CodecSpec.parse(f"transform(budget={bits},head=1)")
    sections = encode_sections(spec, layout, tensors)
    spent = 8 * sum(map(len, sections)) / layout.numel
    return captured(tensors, decode_sections(spec, layout, sections)), spent


def _seconds(delta: Delta) -> list[dict[str, Any]]:
    found = []
    for budget in (0.15, 0.28, 0.45):
        spec = CodecSpec.parse(f"transform(budget={budget})")
        data, _ = encoded(str(spec), delta.layout, delta.tensors)
        coded = timed(lambda s=spec: encode_sections(s, delta.layout, delta.tensors), 5)
        decoded = timed(lambda d=data: decode_update(d, delta.layout), 5)
        for name, times, limit in (("encode", coded, 1.5), ("decode", decoded, 0.2)):
            value = median(times)
            title = f"{delta.layout.numel / 1e6:.1f}M LoRA at {budget:g} bits: {name}"
            found.append(row(title, value, "s", target=f"<= {limit}", spread=times, **{"pass": value <= limit}))
    assert header_for(delta.layout)
    return found
