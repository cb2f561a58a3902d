"""Codecs applied part by part: what is in memory is bounded by a part, not by the update.

An envelope of a layout with more than ``ROUND_CHUNK_ENTRIES`` entries has the sections of all clauses for the first
part, then for the second, and so on. The parts follow from the receiver's own layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedcompress.chunks import ROUND_CHUNK_ENTRIES, TensorSlice, layout_of_slices, read_slices, slice_rows, split_layout
from fedcompress.codecs import Clause, CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.transform.code import Transform
from fedcompress.errors import ConfigError, HeaderError, MismatchError, PayloadError
from fedcompress.numerics.seeded_bases import shared_seed
from fedcompress.types import Array, Layout, Tensors
from fedcompress.wire import Header

Read = Callable[[list[TensorSlice]], Tensors]
Keep = Callable[[list[TensorSlice], Tensors, Tensors], None]


def encode_parts(
    codec: CodecSpec,
    layout: Layout,
    read: Read,
    *,
    seed: int = 0,
    shared: int = 0,
    last: Mapping[str, Array] | None = None,
    keep: Keep | None = None,
) -> tuple[bytes, ...]:
    """Sections of all parts.

    Args:
        codec: how to encode each; a budget in bytes is shared by number of parameters.
        layout: of the whole.
        read: values of a part, float32 and finite, in order.
        seed: of all randomness; each part has one of its own.
        shared: see ``Hints``.
        last: the update sent before, as decoded, for codecs that start from it.
        keep: is given each part, what was encoded and what the receiver will decode.

    Raises:
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    sections: list[bytes] = []
    for number, pieces in enumerate(split_layout(layout, ROUND_CHUNK_ENTRIES)):
        part, values = layout_of_slices(pieces), read(pieces)
        spec = share_of(codec, layout, part)
        before = read_slices(last, pieces) if last is not None else None
        made = encode_sections(spec, part, values, seed=_seed(seed, number), shared=shared, last=before)
        sections += made
        if keep is not None:
            keep(pieces, values, decode_sections(spec, part, made))
    return tuple(sections)


def decode_parts(
    codec: CodecSpec, layout: Layout, sections: Sequence[bytes]
) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    """Values of all parts, in order.

    Raises:
        PayloadError: a section does not decode, or there are too few or too many.
    """
    parts, clauses = split_layout(layout, ROUND_CHUNK_ENTRIES), len(codec.clauses)
    if len(sections) != clauses * len(parts):
        needed = f"the codec {codec} has {clauses} for each of {len(parts)} parts"
        raise PayloadError(f"sections: {len(sections)}: must be {clauses * len(parts)}: {needed}")
    for number, pieces in enumerate(parts):
        part = layout_of_slices(pieces)
        try:
            spec = share_of(codec, layout, part)
        except ConfigError as error:
            raise PayloadError(f"sections: the codec does not fit the layout: {error}") from error
        yield pieces, decode_sections(spec, part, sections[clauses * number : clauses * (number + 1)])


def decode_whole(codec: CodecSpec, layout: Layout, sections: Sequence[bytes]) -> Tensors:
    """All values in memory; raises as ``decode_parts``."""
    out: Tensors = {}
    for pieces, values in decode_parts(codec, layout, sections):
        for piece in pieces:
            name, value = piece.spec.name, values[piece.spec.name]
            if piece.total:
                whole = out.setdefault(name, np.empty(layout.by_name[name].shape, np.float32))
                whole[slice_rows(piece)] = value
            else:
                out[name] = value
    return out


def _seed(seed: int, number: int) -> int:
    """63 bits for a part; the first has the seed itself."""
    if not number:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/part/{number}".encode()).digest()[:8], "little") >> 1


def share_of(spec: CodecSpec, whole: Layout, part: Layout) -> CodecSpec:
    """The codec for a part: budgets in bytes are shared by number of parameters.

    Raises:
        ConfigError: a tensor's group has no clause.
    """
    if part.numel == whole.numel:
        return spec
    clauses = []
    for clause, everything, here in zip(spec.clauses, spec.assign(whole), spec.assign(part), strict=True):
        code = clause.code
        if isinstance(code, Transform) and code.budget and code.bits(1) == code.bits(2):
            numel, ours = sum(t.numel for t in everything), sum(t.numel for t in here)
            if ours < numel:
                size = max(int(code.bits(1) / 8 * ours / numel), 1)
                clause = Clause(clause.groups, replace(code, budget=f"{size}B"))
        clauses.append(clause)
    return CodecSpec(tuple(clauses))


def derive_seed(header: Header) -> int:
    """63 bits from run, site and round: a sender never draws the same randomness twice."""
    text = f"{header.run}/{header.site}/{header.round}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def encode_whole(
    codec: CodecSpec,
    layout: Layout,
    values: Mapping[str, Array],
    header: Header,
    last: Mapping[str, Array] | None,
) -> tuple[bytes, ...]:
    """Of values in memory."""
    layout.check_shapes(values, what="encode")  # parts are cut from them; their values are looked at there
    seed, shared = derive_seed(header), shared_seed(header.run, header.round)
    return encode_parts(codec, layout, lambda pieces: read_slices(values, pieces), seed=seed, shared=shared, last=last)


def check_layout(header: Header, layout: Layout) -> None:
    """Raise ``MismatchError`` unless the header names this layout."""
    if header.layout_digest != layout.digest:
        raise MismatchError(
            "layout-mismatch",
            f"layout_digest: {header.layout_digest.hex()[:16]}: must be {layout.digest.hex()[:16]}, "
            f"the receiver's own layout of {len(layout.tensors)} tensors",
        )


def codec_of(header: Header) -> CodecSpec:
    """The codec that a header names.

    Raises:
        HeaderError: it does not parse.
    """
    try:
        return CodecSpec.parse(header.codec, field="header.codec")
    except ConfigError as error:
        raise HeaderError(str(error)) from error
