"""Finds components of products of which a code sends one factor only: bits that bring nothing.

Where a code decides row by row what is worth its bits, it may send component j of A and leave out that of B, as when B
has more entries for the same energy. The product then lacks the component. So the weaker half of such components is
left out, and the rest is encoded anew, until there are none: what was saved goes to those that remain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedcompress.files.effect.units import Unit
from fedcompress.types import Array, Tensors

TRIES = 8  # encodings of a part

Encode = Callable[[Tensors], tuple[bytes, ...]]
Decode = Callable[[tuple[bytes, ...]], Mapping[str, Array]]


def encode_whole_components(encode: Encode, decode: Decode, units: Sequence[Unit], coded: Tensors) -> tuple[bytes, ...]:
    """Encode a part so that few components are sent by half.

    Args:
        encode: makes sections of tensors.
        decode: makes tensors of sections.
        units: products whose tensors are all in the part, and weighed by component.
        coded: the tensors, float32 by name. They are not changed.

    Returns:
        The sections.
    """
    sections = encode(coded)
    pairs = [(u, leg) for u in units for leg in u.legs if len(leg) == 2]
    if not pairs:
        return sections
    for _ in range(TRIES - 1):
        decoded = decode(sections)
        halves = [half for unit, leg in pairs for half in _find_halves(unit, leg, coded, decoded)]
        if not halves:
            break
        coded = dict(coded)
        for _energy, leg, column, row in sorted(halves)[: -(-len(halves) // 2)]:
            for name, index in ((leg[0], np.s_[:, column]), (leg[1], np.s_[row])):
                coded[name] = coded[name].copy()
                coded[name][index] = 0
        sections = encode(coded)
    return sections


def _find_halves(
    unit: Unit, leg: tuple[str, ...], coded: Mapping[str, Array], decoded: Mapping[str, Array]
) -> list[tuple[float, tuple[str, ...], int, int]]:
    """Find components of which one factor is all 0: their energy, and where they are in the two factors."""
    left, right = leg
    columns = np.arange(coded[left].shape[1])
    rows = columns.reshape(-1, unit.experts).T.reshape(-1)  # of the right factor -> column of the left one
    column_sent = np.count_nonzero(decoded[left].reshape(-1, columns.size), axis=0) > 0
    row_sent = np.count_nonzero(decoded[right].reshape(rows.size, -1), axis=1) > 0
    return [
        (float(np.square(coded[right][row], dtype=np.float64).sum()), leg, int(rows[row]), int(row))
        for row in np.flatnonzero(row_sent != column_sent[rows])
    ]
