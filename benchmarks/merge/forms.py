"""All LoRA forms against the dense mean of B A: merge error, rank, bytes of the adapter.

    python -m benchmarks.merge.forms [FOLDER ...] [--sites 8] [--rank 8] [--width 256] [--noise 0.3] [--json]

Without folders, adapters are random: factors that all share, and noise of each site's own on both.
Targets are what algebra promises: exact forms have no error beyond float32, and at one rank none is
better than the singular value factors.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import row, show
from fedcompress.adapters import load_adapter, save_adapter
from fedcompress.errors import ConfigError
from fedcompress.files.merge import merge_adapters
from fedcompress.types import Layout, TensorSpec

EXACT = ("exact", "flora", "fedex")
ROUNDING = 1e-6


def forms(rank: int) -> dict[str, dict[str, Any]]:
    """Options of each form; those that may change the rank also at the rank of the sites."""
    out: dict[str, dict[str, Any]] = {name: {"rule": name} for name in EXACT}
    out |= {
        f"exact --rank {rank}": {"rule": "exact", "rank": rank},
        f"exact --rank {2 * rank}": {"rule": "exact", "rank": 2 * rank},
        f"fedex --rank {2 * rank}": {"rule": "fedex", "rank": 2 * rank},
        "exact --energy 0.999": {"rule": "exact", "energy": 0.999},
    }
    rules = ("fedit", "ffa", "lora-ridge", "lora-fair", "lora-als(sweeps=1)", "lora-als", "lora-procrustes", "lora-svd")
    out |= {rule: {"rule": rule} for rule in rules}
    out[f"mean in products --rank {rank}"] = {"rule": "mean", "space": "product", "rank": rank}
    return out


def sites(out: Path, count: int, rank: int, width: int, noise: float) -> list[Path]:
    """Random adapters of two modules around shared factors."""
    generator = np.random.default_rng(0)
    names = [f"base_model.model.m{i}.lora_{f}.weight" for i in range(2) for f in "AB"]
    shapes = {n: (rank, width) if ".lora_A." in n else (width, rank) for n in names}
    layout = Layout(tuple(TensorSpec(name=n, shape=shapes[n]) for n in names))
    shared = {n: generator.standard_normal(shapes[n]) for n in names}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["m0", "m1"]}
    for number in range(count):
        own = {n: (v + noise * generator.standard_normal(v.shape)).astype(np.float32) for n, v in shared.items()}
        save_adapter(out / f"site{number}", config, layout, own)
    return [out / f"site{number}" for number in range(count)]


def products(folder: Path) -> dict[str, np.ndarray]:
    """Dense scaling times B A, for configs without patterns that change it."""
    adapter = load_adapter(folder)
    config, out = adapter.config, {}
    for name, a in adapter.tensors.items():
        if ".lora_A." in name:
            rank = a.shape[0]
            alpha = rank if config.get("alpha_pattern") else config["lora_alpha"]
            scaling = alpha / (np.sqrt(rank) if config.get("use_rslora") else rank)
            b = adapter.tensors[name.replace(".lora_A.", ".lora_B.")]
            out[name] = scaling * b.astype(np.float64) @ a
    return out


def measured(folders: list[Path], scratch: Path, options: Mapping[str, Any]) -> tuple[float, int, int]:
    """Error against the dense mean, highest rank and bytes."""
    report = merge_adapters(folders, scratch / "merged", **options)
    found = products(scratch / "merged")
    off = 0.0
    whole = 0.0
    held = [products(folder) for folder in folders]
    for name, value in found.items():
        target = sum((h[name] for h in held if name in h), np.zeros_like(value)) / len(folders)
        off += float(np.sum((value - target) ** 2))
        whole += float(np.sum(target**2))
    return float(np.sqrt(off / whole)), report["rank"][1], report["bytes"]


def rows(folders: list[Path], rank: int, scratch: Path) -> list[dict[str, Any]]:
    """Three rows for each form; forms that the adapters do not allow are named with the reason."""
    results: dict[str, tuple[float, int, int]] = {}
    out = []
    for name, options in forms(rank).items():
        try:
            results[name] = measured(folders, scratch, options)
        except ConfigError as error:
            out.append(row(f"{name}: refused", 1, "", note=str(error)))
    best = results[f"exact --rank {rank}"][0]
    for name, (error, reached, size) in results.items():
        promise: dict[str, Any] = {}
        if name in EXACT:
            promise = {"target": f"<= {ROUNDING:g}", "pass": error <= ROUNDING}
        elif reached <= rank:
            promise = {"target": f">= {best:.4f}", "pass": error >= best * (1 - ROUNDING)}
        out.append(row(f"{name}: merge error", error, "", **promise))
        out.append(row(f"{name}: rank", reached, ""))
        out.append(row(f"{name}: size", size, "bytes"))
    return out


def table(out: Path) -> list[dict[str, Any]]:
    """Merge eight random adapters of rank 8 in each form, and return a row for each."""
    with tempfile.TemporaryDirectory() as scratch:
        return rows(sites(Path(scratch), 8, 8, 256, 0.3), 8, Path(scratch))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    for name, default in (("sites", 8), ("rank", 8), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = args.folders or sites(Path(scratch), args.sites, args.rank, args.width, args.noise)
        show(rows(folders, args.rank, Path(scratch)), args.json)


if __name__ == "__main__":
    main()
