"""Writes what training has changed to a file, tensor by tensor: no second copy of the model is in memory.

An adapter and weights of the base go the same way: a *delta* is trained minus published, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clients.training.engines import WarmEngine
from clients.training.job import DELTA
from fedcompress.adapters.full.attach import BASIS, COEFFICIENTS
from fedcompress.chunks import TensorSlice, read_slices, slice_rows, split_layout
from fedcompress.errors import NonFiniteError
from fedcompress.numerics.seeded_bases import expand
from fedcompress.storage.tensor_file import MAGIC, TensorFile
from fedcompress.types import Array, Layout

SLICE_ENTRIES = 1 << 21  # entries of a tensor that are handled at a time


def write_delta(engine: WarmEngine, start: Mapping[str, Array], layout: Layout, folder: Path | None) -> bool:
    """Write trained minus published to a stream; all ranks call it together, and one has a folder.

    Args:
        engine: has trained.
        start: what the round began with, float32 by name; read slice by slice where it can be.
        layout: of the delta; entries that were not trained are 0.
        folder: where to write ``DELTA``; None to take part only.

    Returns:
        Whether any entry changed; the same on all ranks.

    Raises:
        NonFiniteError: a trained weight is NaN or infinite; raised on all ranks.
    """
    if folder is None:
        for _ in engine.stream():
            pass
        return _agree(engine, is_changed=False, bad="")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / DELTA).open("wb") as file:
        file.write(MAGIC)
        file.truncate(len(MAGIC) + 4 * layout.numel)  # zeros, of which a file system keeps none
        is_changed, bad = _write_tensors(engine, start, layout, file)
    return _agree(engine, is_changed=is_changed, bad=bad)


def _write_tensors(engine: WarmEngine, start: Mapping[str, Array], layout: Layout, file: BinaryIO) -> tuple[bool, str]:
    """Return whether any entry changed, and the name of a tensor that is not finite, if one is.

    The engine's tensors are read to the end in any case, since all ranks gather them together.
    """
    target = TensorFile(Path(file.name), layout, len(MAGIC))
    is_changed = False
    bad = ""
    for name, tensor in engine.stream():
        for part, delta in _slice_deltas(name, tensor, start, layout):
            if not np.isfinite(delta).all():
                bad = bad or part.spec.name
            elif delta.any():
                is_changed = True
                file.seek(target.offset_of(part))
                file.write(np.ascontiguousarray(delta, "<f4").data)
    return is_changed, bad


def _slice_deltas(
    name: str, tensor: Any, start: Mapping[str, Array], layout: Layout
) -> Iterator[tuple[TensorSlice, Array]]:
    """Yield the delta of one trained tensor, slice by slice; coefficients are expanded to the weight that they move."""
    spec = layout.by_name[name.removesuffix(COEFFICIENTS)]
    basis = start[spec.name + BASIS] if name.endswith(COEFFICIENTS) else None
    for chunk in split_layout(Layout((spec,)), SLICE_ENTRIES):
        for part in chunk:
            trained = tensor[slice_rows(part)].float().cpu().numpy()
            if basis is None:
                yield part, trained - read_slices(start, [part])[spec.name]
            else:
                yield part, expand(trained, basis)


def _agree(engine: WarmEngine, *, is_changed: bool, bad: str) -> bool:
    """Tell all ranks what the one that writes has found, so that all go on or fail together."""
    import torch

    flags = torch.tensor([float(is_changed), float(bool(bad))], device=engine.device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    changed, failed = flags.tolist()
    if failed:
        raise NonFiniteError(f"trained: {bad or 'a weight'}: contains NaN or infinity")
    return bool(changed)
