"""PEFT types whose change is linear in their parameters: averaged entry by entry."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.chunks import TensorSlice, split_layout
from fedcompress.errors import ConfigError
from fedcompress.files.merge.peft_types import TypeRow
from fedcompress.files.merge.reduction import EXACT, MergeOptions
from fedcompress.files.merge.report import contribution, cosines
from fedcompress.files.merge.sources import Site
from fedcompress.files.merge.writer import Result, means_of, write
from fedcompress.merging.base import Floats
from fedcompress.types import Layout


def merge_entries(
    sites: Sequence[Site],
    weights: Floats,
    choice: MergeOptions,
    row: TypeRow,
    out: Path,
    dtype: str,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Weighted mean of all tensors, piece by piece.

    Raises:
        ConfigError: a form or rule other than the mean is asked for, or a frozen tensor differs.
    """
    kind = str(sites[0].config["peft_type"])
    name = choice.name
    if name not in (EXACT, "mean") or choice.rank is not None or choice.energy is not None:
        raise ConfigError("--rule", name, f"is for LoRA: {kind} has its weighted mean, which is exact, and no rank")
    means = means_of(sites, dtype, scaled=False)
    layout = Layout(tuple(means))
    gram, done = np.zeros((len(sites), len(sites))), 0
    progress(0, layout.numel)
    for part in split_layout(layout):
        for piece in part:
            values = _values(piece, sites)
            if row.frozen and re.search(row.frozen, piece.spec.name):
                _check_equal(piece, sites, values, kind)
            else:
                gram += values @ values.T
            done += piece.spec.numel
            progress(done, layout.numel)
    result = Result(config={**sites[0].config, "inference_mode": True}, layout=layout, factors={}, means=means)
    size = write(out, result, sites, weights)
    return {
        "path": str(out),
        "peft_type": kind,
        "rule": "mean",
        "space": "entries",
        "bytes": size,
        "parameters": layout.numel,
        "merge_error": 0.0,
        "norm": math.sqrt(max(float(weights @ gram @ weights), 0.0)),
        "site_norms": np.sqrt(np.diag(gram)).tolist(),
        "contribution": contribution(gram, weights),
        "cosines": cosines(gram),
        "notes": ["norms and cosines are of the averaged parameters, not of changes from the base model"],
        "sites": [{"path": str(s.path), "weight": float(w)} for s, w in zip(sites, weights, strict=True)],
        "modules": [],
    }


def _values(piece: TensorSlice, sites: Sequence[Site]) -> Floats:
    stop = piece.start + piece.spec.shape[0] if piece.total else None
    return np.stack([s.read(piece.whole, piece.start, stop).reshape(-1).astype(np.float64) for s in sites])


def _check_equal(piece: TensorSlice, sites: Sequence[Site], values: Floats, kind: str) -> None:
    for site, own in zip(sites, values, strict=True):
        if (own != values[0]).any():
            rule = f"must be equal at all sites, as in {sites[0].path}: the mean of {kind} is exact only then"
            raise ConfigError(f"{site.path}: {piece.spec.name}", "differs", rule)
