"""Bytes of sparse ternary against the entropy of its entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codec.deltas import deltas
from benchmarks.codec.measure import encoded, one_tensor, sparse_bound
from benchmarks.common import row
from fedcompress.codecs import CodecSpec, encode_sections
from fedcompress.codecs.selectors.topk import count_kept, find_largest

ENTRIES = 4_000_000


def rows(out: Path) -> list[dict[str, Any]]:
    """Random signs of one density; then real updates, trimmed globally."""
    found = []
    layout, tensors = one_tensor(np.random.default_rng(0).standard_normal(ENTRIES).astype(np.float32))
    for p in (0.01, 0.05, 0.1, 0.2, 0.5):
        data, _ = encoded(f"topk(density={p})|ternary", layout, tensors)
        limit = 1.005 * sparse_bound(p) * ENTRIES / 8 + 256
        excess = len(data) / (sparse_bound(p) * ENTRIES / 8)
        found.append(
            row(f"file at p={p:g} over its bound", excess, "x", target="<= 1.005", **{"pass": len(data) <= limit})
        )
    for delta in deltas(out):
        for p in (0.05, 0.1):
            found.append(_real(delta.name, delta.layout, delta.tensors, p))
    return found


def _real(name: str, layout: Any, tensors: Any, p: float) -> dict[str, Any]:
    """A real update; lossless: the entries that arrive are those that were chosen, with their signs."""
    spec = CodecSpec.parse(f"topk(density={p},scope=global)|ternary")
    _, decoded = encoded(str(spec), layout, tensors)
    flat = [tensors[t.name].ravel() for t in layout.tensors]
    chosen = find_largest(flat, count_kept(p, layout.numel))
    for spec_of, values, places in zip(layout.tensors, flat, chosen, strict=True):
        got = decoded[spec_of.name].ravel()
        signs = np.zeros(values.size)
        signs[places] = np.where(np.signbit(values[places]), -1, 1)
        if not np.array_equal(np.sign(got), signs):
            raise AssertionError(f"{name}: {spec_of.name}: not lossless")
    body = sum(map(len, encode_sections(spec, layout, tensors)))
    ratio = body / (sparse_bound(p) * layout.numel / 8)
    return row(
        f"{name}: section at p={p:g} over the bound of one density",
        ratio,
        "x",
        target="<= 0.9",
        **{"pass": ratio <= 0.9},
    )
