"""Writes what training has changed to a file, tensor by tensor: no second copy of the model is in memory.

An adapter and weights of the base go the same way: a *delta* is trained minus published, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


def write_delta(engine: WarmEngine, start: Mapping[str, Array], layout: Layout, folder: Path | None) -> bool | None:
    """Write trained minus published to a stream; all ranks call it together, and one has a folder.

    Args:
        engine: has trained.
        start: what the round began with, float32 by name; read slice by slice where it can be.
        layout: of the delta; entries that were not trained are 0.
        folder: where to write ``DELTA``; None to take part only.

    Returns:
        Whether any entry changed, the same on all ranks; None on the others where the rank that writes has failed,
        which then says why.

    Raises:
        NonFiniteError: a trained weight is NaN or infinite.
    """
    tensors = engine.stream()
    is_changed = False
    failure: Exception | None = None
    if folder is not None:
        try:
            is_changed = _write_tensors(tensors, start, layout, folder)
        except Exception as error:
            failure = error
    for _ in tensors:  # to the end in any case, since all ranks gather them together
        pass
    is_changed, has_failed = _agree(engine, is_changed=is_changed, has_failed=failure is not None)
    if failure is not None:
        raise failure
    return None if has_failed else is_changed


def _write_tensors(
    tensors: Iterator[tuple[str, Any]], start: Mapping[str, Array], layout: Layout, folder: Path
) -> bool:
    """Write the deltas of all trained tensors, and return whether any entry changed."""
    folder.mkdir(parents=True, exist_ok=True)
    is_changed = False
    with (folder / DELTA).open("wb") as file:
        file.write(MAGIC)
        file.truncate(len(MAGIC) + 4 * layout.numel)  # zeros, of which a file system keeps none
        file.flush()
        target = TensorFile(Path(file.name), layout, len(MAGIC))
        for name, tensor in tensors:
            for part, delta in _slice_deltas(name, tensor, start, layout):
                if not np.isfinite(delta).all():
                    raise NonFiniteError(f"trained: {part.spec.name}: contains NaN or infinity")
                if delta.any():
                    is_changed = True
                    file.seek(target.offset_of(part))
                    file.write(np.ascontiguousarray(delta, "<f4").data)
    return is_changed


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


def _agree(engine: WarmEngine, *, is_changed: bool, has_failed: bool) -> tuple[bool, bool]:
    """Tell all ranks what became of the one that writes, so that all of them go on, or all load their model again."""
    import torch

    flags = torch.tensor([float(is_changed), float(has_failed)], device=engine.device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    changed, failed = flags.tolist()
    return bool(changed), bool(failed)
