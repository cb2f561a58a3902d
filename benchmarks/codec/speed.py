"""Time and memory of sparse ternary, in units of copying the tensor, beside other tools' steps."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.codec.measure import header_for, one_tensor
from benchmarks.common import curves, row
from fedcompress.codecs import CodecSpec, encode_sections
from fedcompress.pipeline.updates import decode_update, encode_update
from fedcompress.types import Array
from fedcompress.wire import pack

ENTRIES = 20_000_000
DENSITY = 0.05
REPEATS = 7
GROWTH = (100_000, 1_000_000, 10_000_000, 100_000_000)
SPEC = CodecSpec.parse(f"topk(density={DENSITY})|ternary")


def timed(run: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
    """Seconds of each repeat, after one that does not count."""
    run()
    out = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        out.append(time.perf_counter() - started)
    return out


def peak(run: Callable[[], Any]) -> int:
    """Most bytes that numpy and Python held at once beyond the start."""
    tracemalloc.start()
    run()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def _values(entries: int) -> Array:
    return np.random.default_rng(0).standard_normal(entries, np.float32)


def rows(out: Path) -> list[dict[str, Any]]:
    """Ratios within this run; their spread is from the quartiles of repeats."""
    values = _values(ENTRIES)
    layout, tensors = one_tensor(values)
    header, path = header_for(layout), out / "speed.fcu"

    def encode() -> None:
        sections = encode_sections(SPEC, layout, tensors)
        path.write_bytes(pack(replace(header, codec=str(SPEC)), sections))

    copy = median(timed(lambda: values.copy()))
    encode()
    data = path.read_bytes()
    found = [row("copy of 20M float32", 1e3 * copy, "ms")]
    for name, run, limit in (
        ("encode 20M at 5 %, with writing the file", encode, 12),
        ("decode 20M at 5 %", lambda: decode_update(data, layout), 8),
    ):
        ratios = sorted(t / copy for t in timed(run))
        middle = median(ratios)
        found.append(row(name, middle, "x copy", target=f"<= {limit}", spread=ratios, **{"pass": middle <= limit}))
    extra = peak(encode) / values.nbytes
    found.append(row("encode: peak extra memory", extra, "x tensor", target="<= 1.25", **{"pass": extra <= 1.25}))
    ours = next(r["value"] for r in found if r["name"].startswith("encode 20M"))
    return found + _others(values, copy, ours) + _growth(out)


def _others(values: Array, copy: float, ours: float) -> list[dict[str, Any]]:
    """Steps of other tools that write nothing, on the same tensor."""
    import bitsandbytes.functional as bnb
    import torch
    import zstandard

    tensor = torch.from_numpy(values)
    mask = np.packbits(np.abs(values) > 1.96)
    steps: dict[str, Callable[[], Any]] = {
        "ComPEFT's std, kthvalue, where": lambda: _compeft(tensor),
        "bitsandbytes blockwise 8 bit": lambda: bnb.quantize_blockwise(tensor),
        "bitsandbytes nf4": lambda: bnb.quantize_4bit(tensor, quant_type="nf4"),
        "zstd -19 of the mask": lambda: zstandard.ZstdCompressor(level=19).compress(mask.tobytes()),
    }
    found = []
    for name, run in steps.items():
        ratio = median(timed(run, 3)) / copy
        found.append(row(f"{name}, 20M", ratio, "x copy"))
    times = found[0]["value"] / ours
    found.append(row("encode is faster than ComPEFT's steps", times, "x", target=">= 6", **{"pass": times >= 6}))
    return found


def _compeft(tensor: Any) -> Any:
    """Encode as ComPEFT's released code: keep what reaches the k-th largest magnitude, as sign times deviation."""
    import torch

    magnitude = tensor.abs()
    threshold = magnitude.kthvalue(int(tensor.numel() * (1 - DENSITY))).values
    return torch.where(magnitude >= threshold, tensor.sign() * tensor.std(), torch.zeros_like(tensor))


def _growth(out: Path) -> list[dict[str, Any]]:
    """Seconds from 1e5 to 1e8 entries, and a picture."""
    found, points = [], []
    for entries in GROWTH:
        layout, tensors = one_tensor(_values(entries))
        header = header_for(layout)
        data, _ = encode_update(tensors, layout, SPEC, header)
        repeats = 5 if entries <= 10_000_000 else 2
        coded = median(timed(lambda t=tensors, s=layout: encode_sections(SPEC, s, t), repeats))
        decoded = median(timed(lambda d=data, s=layout: decode_update(d, s), repeats))
        points.append((entries, coded, decoded))
        found.append(row(f"encode {entries:.0e} entries", 1e9 * coded / entries, "ns each"))
        found.append(row(f"decode {entries:.0e} entries", 1e9 * decoded / entries, "ns each"))
    sizes, coded_all, decoded_all = zip(*points, strict=True)
    lines = {"encode": (sizes, coded_all), "decode": (sizes, decoded_all)}
    curves(lines, out / "growth.png", across="entries", up="seconds", title=f"{SPEC}, two cores")
    return found
