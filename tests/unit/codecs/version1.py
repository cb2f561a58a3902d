"""Masks as version 1 of a section has them, which the library reads but no longer writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcompress.codecs.byte_io import Writer
from fedcompress.codecs.entropy.range_coder import RangeWriter, bernoulli

PACKED = 0
RANGE = 1


def write_masks(writer: Writer, masks: Sequence[np.ndarray]) -> None:
    """Counts of each mask, then all positions in one stream."""
    counts = [int(m.sum()) for m in masks]
    for count in counts:
        writer.varint(count)
    open_masks = [(m, k) for m, k in zip(masks, counts, strict=True) if 0 < k < m.size]
    encoder = RangeWriter()
    for mask, count in open_masks:
        encoder.put(mask, bernoulli(count, mask.size))
    packed = np.packbits(np.concatenate([m for m, _ in open_masks])).tobytes() if open_masks else b""
    coder, data = min([(PACKED, packed), (RANGE, encoder.getvalue())], key=lambda choice: len(choice[1]))
    writer.u8(coder)
    writer.stream(data)
