"""Rate and distortion on real updates: ours beside the formats of other systems, by real bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codec.deltas import Delta, deltas
from benchmarks.codec.measure import captured, encoded
from benchmarks.common import row
from fedcompress.codecs.selectors.chunked import find_largest_in_rows
from fedcompress.codecs.selectors.topk import count_kept, find_largest
from fedcompress.types import Array, Tensors

OURS = {
    "transform": [f"transform(budget={b},head=1)" for b in (0.08, 0.15, 0.28, 0.45, 0.8, 1.6, 3.0, 6.0)],
    "topk|ternary": [f"topk(density={d},scope=global)|ternary" for d in (0.01, 0.05, 0.1, 0.2, 0.5)],
    "allocate|ternary": [f"allocate(budget={b})|ternary" for b in (0.1, 0.3, 0.6, 1.0)],
    "chunk|twobit": [f"chunk(k={k},of=4096)|twobit" for k in (64, 256, 1024)],
    "sign": ["sign"],
    "powersgd": [f"powersgd(rank={r})" for r in (1, 2, 4)],
    "int": [f"int(bits={b},block=256)" for b in (3, 4, 8)],
}
Point = tuple[float, float]  # bits a parameter, captured share


def golomb_bits(positions: Array, size: int) -> float:
    """Exact length of Golomb-coded gaps, with the best parameter (a power of two, as STC takes it)."""
    gaps = np.diff(positions, prepend=-1) - 1
    return min(float((gaps // (1 << b) + 1 + b).sum()) for b in range(24)) if positions.size else 0.0


def _stc(delta: Delta, density: float) -> Point:
    """Sparse ternary compression: top-k of each tensor, Golomb positions, a sign bit, a float32 scale."""
    decoded, bits = {}, 0.0
    for spec in delta.layout.tensors:
        flat = delta.tensors[spec.name].ravel()
        places = find_largest([flat], count_kept(density, flat.size))[0]
        bits += golomb_bits(places, flat.size) + places.size + 32
        decoded[spec.name] = _ternary(flat, places).reshape(spec.shape)
    return bits / delta.layout.numel, captured(delta.tensors, decoded)


def _ternary(flat: Array, places: Array) -> Array:
    out = np.zeros(flat.size, np.float32)
    out[places] = np.sign(flat[places]) * np.abs(flat[places]).mean()
    return out


def _zstd(delta: Delta, density: float) -> Point:
    """The same, as one bit an entry and the sign bits, both through zstd -19."""
    import zstandard

    masks = []
    signs = []
    decoded = {}
    for spec in delta.layout.tensors:
        flat = delta.tensors[spec.name].ravel()
        places = find_largest([flat], count_kept(density, flat.size))[0]
        mask = np.zeros(flat.size, np.bool_)
        mask[places] = True
        masks.append(mask)
        signs.append(np.signbit(flat[places]))
        decoded[spec.name] = _ternary(flat, places).reshape(spec.shape)
    pressed = [
        zstandard.ZstdCompressor(level=19).compress(np.packbits(np.concatenate(p)).tobytes()) for p in (masks, signs)
    ]
    bits = 8 * sum(map(len, pressed)) + 16 * len(masks)
    return bits / delta.layout.numel, captured(delta.tensors, decoded)


def _sparseloco(delta: Delta) -> Point:
    """64 of every 4096 with 12-bit indices and 2-bit values, and four float32 centres a tensor."""
    decoded, bits = {}, 0.0
    for spec in delta.layout.tensors:
        flat = delta.tensors[spec.name].ravel()
        padded = np.pad(flat, (0, -flat.size % 4096)).reshape(-1, 4096)
        places = find_largest_in_rows(np.abs(padded), 64)
        places = places[places < flat.size]
        values = flat[places].astype(np.float64)
        width = max(6 * values.std() / 4, 1e-30)
        bins = np.clip(np.floor((values - values.mean()) / width + 2), 0, 3).astype(int)
        centres = np.bincount(bins, values, 4) / np.maximum(np.bincount(bins, minlength=4), 1)
        out = np.zeros(flat.size, np.float32)
        out[places] = centres[bins]
        decoded[spec.name] = out.reshape(spec.shape)
        bits += 14 * places.size + 4 * 32
    return bits / delta.layout.numel, captured(delta.tensors, decoded)


def _nvflare(delta: Delta, kind: str) -> Point:
    """NVFlare's quantization filters: bitsandbytes' blockwise 8 bit and nf4, float32 scales."""
    import bitsandbytes.functional as bnb
    import torch

    decoded: Tensors = {}
    bits = 0.0
    for spec in delta.layout.tensors:
        tensor = torch.from_numpy(delta.tensors[spec.name].copy())
        if kind == "8 bit":
            codes, state = bnb.quantize_blockwise(tensor, blocksize=4096)
            decoded[spec.name] = bnb.dequantize_blockwise(codes, state).numpy()
            bits += 8 * tensor.numel() + 32 * state.absmax.numel()
        else:
            codes, state = bnb.quantize_4bit(tensor, quant_type="nf4", blocksize=64)
            decoded[spec.name] = bnb.dequantize_4bit(codes, state).numpy().reshape(spec.shape)
            bits += 8 * codes.numel() + 32 * state.absmax.numel()
    return bits / delta.layout.numel, captured(delta.tensors, decoded)


OTHERS: dict[str, Callable[[Delta], list[Point]]] = {
    "STC, Golomb": lambda d: [_stc(d, p) for p in (0.01, 0.05, 0.1, 0.2)],
    "ternary, zstd -19": lambda d: [_zstd(d, p) for p in (0.01, 0.05, 0.1, 0.2)],
    "SparseLoCo, 12 bit": lambda d: [_sparseloco(d)],
    "NVFlare, 8 bit": lambda d: [_nvflare(d, "8 bit")],
    "NVFlare, nf4": lambda d: [_nvflare(d, "nf4")],
}


def curves(delta: Delta) -> Iterator[tuple[str, list[Point]]]:
    """Name and points of each code."""
    for name, specs in OURS.items():
        points = []
        for spec in specs:
            data, decoded = encoded(spec, delta.layout, delta.tensors)
            points.append((8 * len(data) / delta.layout.numel, captured(delta.tensors, decoded)))
        yield name, points
    for name, run in OTHERS.items():
        yield name, run(delta)


def bits_at(points: list[Point], share: float) -> float:
    """Bits at which a curve reaches a share, between its points; infinite beyond its end."""
    ordered = sorted(points)
    for (low_bits, low), (high_bits, high) in zip([(0.0, 0.0), *ordered], ordered, strict=False):
        if low < share <= high:
            return low_bits + (high_bits - low_bits) * (share - low) / (high - low)
    return float("inf")


def rows(out: Path) -> list[dict[str, Any]]:
    """All points; and how many times the bytes of the transform code others take at equal distortion."""
    found, pictures = [], []
    for delta in deltas(out):
        drawn = dict(curves(delta))
        pictures.append((delta.name, drawn))
        for name, points in drawn.items():
            for bits, share in points:
                found.append(row(f"{delta.name}: {name}, captured", share, "", note=f"{bits:.4f} bits/param"))
        for name, points in drawn.items():
            if name == "transform":
                continue
            bits, share = min(points, key=lambda p: abs(p[1] - 0.5))
            needed = bits_at(drawn["transform"], share)
            if needed == float("inf"):  # finer than the points that were drawn
                continue
            times = bits / needed
            found.append(row(f"{delta.name}: bytes of {name} / transform", times, "x", note=f"captured {share:.3f}"))
    _plot(pictures, out / "rate-distortion.png")
    return found


def _plot(pictures: list[tuple[str, dict[str, list[Point]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(3, 3, figsize=(13, 11), sharey=True, squeeze=False)
    for axes, (title, drawn) in zip(grid.flat, pictures, strict=False):
        for number, (name, points) in enumerate(drawn.items()):
            axes.semilogx(
                *zip(*points, strict=True), "o-" if len(points) > 1 else "D", ms=4, label=name, color=f"C{number % 10}"
            )
        axes.set_title(title)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.set_xlabel("bits a parameter, whole file")
    grid[0][0].set_ylabel("energy captured")
    grid[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
