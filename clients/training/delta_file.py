"""What training changed, tensor by tensor, to a file: no second copy of the model is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clients.training.engines import WarmEngine
from clients.training.job import UPDATE
from fedcompress.adapters.full.attach import BASIS, COEFFICIENTS, RoundStart
from fedcompress.chunks import TensorSlice, split_layout
from fedcompress.errors import NonFiniteError
from fedcompress.numerics.seeded_bases import expand
from fedcompress.storage.tensor_file import MAGIC, TensorFile
from fedcompress.types import Array, Layout

ENTRIES = 1 << 21  # of a tensor that are handled at a time


def write_delta_file(engine: WarmEngine, values: RoundStart, layout: Layout, folder: Path | None) -> bool:
    """Write trained minus published; all ranks call it, and one has a folder.

    Args:
        engine: which has trained.
        values: what the round began with.
        layout: of the update; what was not trained is 0.
        folder: where to write; None to take part only.

    Returns:
        Whether anything changed; of no meaning without a folder.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
    """
    if folder is None:
        for _ in engine.stream():
            pass
        return True
    folder.mkdir(parents=True, exist_ok=True)
    path, changed = folder / UPDATE, False
    with path.open("wb") as file:
        file.write(MAGIC)
        file.truncate(len(MAGIC) + 4 * layout.numel)  # zeros, of which a file system keeps none
        places = TensorFile(path, layout, len(MAGIC))
        for name, tensor in engine.stream():
            for piece, change in _changes(name, tensor, values, layout):
                if not np.isfinite(change).all():
                    raise NonFiniteError(f"trained: {piece.spec.name}: contains NaN or infinity")
                if change.any():
                    changed = True
                    file.seek(places.offset_of(piece))
                    file.write(np.ascontiguousarray(change, "<f4").data)
    return changed


def _changes(name: str, tensor: Any, values: RoundStart, layout: Layout) -> Iterator[tuple[TensorSlice, Array]]:
    """Pieces of one tensor's update."""
    spec = layout.by_name[name.removesuffix(COEFFICIENTS)]
    basis = values[spec.name + BASIS] if name.endswith(COEFFICIENTS) else None
    for part in split_layout(Layout((replace(spec),)), ENTRIES):
        for piece in part:
            rows = slice(piece.start, piece.start + piece.spec.shape[0]) if piece.total else slice(None)
            now = (tensor[rows] if tensor.dim() else tensor).float().cpu().numpy()
            yield piece, now - values.piece(piece) if basis is None else expand(now, basis)
