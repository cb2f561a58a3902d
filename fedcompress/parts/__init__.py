"""Layouts cut into parts of bounded size, so that memory is bounded by a part, not by the update.

``cutting`` makes the parts, ``coding`` encodes and decodes them, ``stored`` reads and writes them on disk, and
``streaming`` makes envelopes and states of them.
"""

from fedcompress.parts.cutting import (
    MAX_PART,
    MAX_TENSORS,
    PART,
    ROUND_PART,
    Piece,
    cut,
    layout_of,
    rows_of,
    values_of,
)

__all__ = ["MAX_PART", "MAX_TENSORS", "PART", "ROUND_PART", "Piece", "cut", "layout_of", "rows_of", "values_of"]
