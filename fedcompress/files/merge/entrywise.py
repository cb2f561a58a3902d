"""PEFT types whose change of the model is linear in their parameters are averaged entry by entry."""

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
from fedcompress.files.merge.report import compute_contribution, compute_cosines
from fedcompress.files.merge.sources import Site
from fedcompress.files.merge.writer import MergedAdapter, list_means, write_adapter
from fedcompress.merging.base import Floats
from fedcompress.types import Layout


def merge_entries(
    sites: Sequence[Site],
    weights: Floats,
    options: MergeOptions,
    row: TypeRow,
    out: Path,
    dtype: str,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write the weighted mean of all tensors, slice by slice.

    Args:
        sites: the adapters, all of one type.
        weights: shape (sites,), float64; they add up to 1.
        options: the rule that was asked for; only the mean, or ``exact``, which is the mean here, will do.
        row: what the table says of the adapters' type.
        out: folder to write.
        dtype: dtype to store; empty is that of the adapters.
        progress: called with entries done and entries in all.

    Returns:
        The report, see ``merge_adapters``.

    Raises:
        ConfigError: a form or rule other than the mean is asked for, or a frozen tensor differs.
    """
    peft_type = str(sites[0].config["peft_type"])
    name = options.name
    if name not in (EXACT, "mean") or options.rank is not None or options.energy is not None:
        rule = f"is for LoRA: {peft_type} has its weighted mean, which is exact, and no rank"
        raise ConfigError("--rule", name, rule)
    means = list_means(sites, dtype, scaled=False)
    layout = Layout(tuple(means))
    gram = _compare_entries(sites, layout, row.frozen, progress)
    config = {**sites[0].config, "inference_mode": True}
    result = MergedAdapter(config=config, layout=layout, factors={}, means=means)
    size = write_adapter(out, result, sites, weights)
    return {
        "path": str(out),
        "peft_type": peft_type,
        "rule": "mean",
        "space": "entries",
        "bytes": size,
        "parameters": layout.numel,
        "merge_error": 0.0,
        "norm": math.sqrt(max(float(weights @ gram @ weights), 0.0)),
        "site_norms": np.sqrt(np.diag(gram)).tolist(),
        "contribution": compute_contribution(gram, weights),
        "cosines": compute_cosines(gram),
        "notes": ["norms and cosines are of the averaged parameters, not of changes from the base model"],
        "sites": [{"path": str(s.path), "weight": float(w)} for s, w in zip(sites, weights, strict=True)],
        "modules": [],
    }


def _compare_entries(
    sites: Sequence[Site], layout: Layout, frozen: str, progress: Callable[[int, int], None]
) -> Floats:
    """Return the inner products of the sites' averaged parameters, shape (sites, sites).

    Tensors whose name matches ``frozen`` must be equal at all sites, and do not count.
    """
    gram = np.zeros((len(sites), len(sites)))
    done = 0
    progress(0, layout.numel)
    for slices in split_layout(layout):
        for piece in slices:
            values = _read_slice(piece, sites)
            if frozen and re.search(frozen, piece.spec.name):
                _check_equal(piece, sites, values)
            else:
                gram += values @ values.T
            done += piece.spec.numel
            progress(done, layout.numel)
    return gram


def _read_slice(piece: TensorSlice, sites: Sequence[Site]) -> Floats:
    """Read a slice of all sites, shape (sites, n), float64."""
    stop = piece.start + piece.spec.shape[0] if piece.total else None
    return np.stack([s.read(piece.whole, piece.start, stop).reshape(-1).astype(np.float64) for s in sites])


def _check_equal(piece: TensorSlice, sites: Sequence[Site], values: Floats) -> None:
    peft_type = sites[0].config["peft_type"]
    for site, own in zip(sites, values, strict=True):
        if (own != values[0]).any():
            rule = f"must be equal at all sites, as in {sites[0].path}: the mean of {peft_type} is exact only then"
            raise ConfigError(f"{site.path}: {piece.spec.name}", "differs", rule)
