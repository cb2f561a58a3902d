"""Tensors to sections and back: one section for each clause of a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedcompress.codecs.base import EncoderHints
from fedcompress.codecs.byte_io import SECTION_VERSION, Reader
from fedcompress.codecs.chain import SelectThenQuantize
from fedcompress.codecs.spec import CodecSpec
from fedcompress.errors import ConfigError, PayloadError
from fedcompress.types import Array, Layout, Tensors


def encode_sections(
    spec: CodecSpec,
    layout: Layout,
    tensors: Mapping[str, Array],
    *,
    seed: int = 0,
    last: Mapping[str, Array] | None = None,
    importance: Mapping[str, Array] | None = None,
    shared: int = 0,
) -> tuple[bytes, ...]:
    """One section for each clause.

    Args:
        spec: the codec.
        layout: of ``tensors``.
        tensors: float32, finite.
        seed: of all randomness, from 0 to 2^63 - 1; equal seeds give equal bytes.
        last: the sender's update before this one, as decoded; codes that iterate start from it.
        importance: see ``EncoderHints``.
        shared: see ``EncoderHints``.

    Raises:
        LayoutError: ``tensors`` does not have the layout.
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    layout.check(tensors, what="encode")
    hints, sections = EncoderHints(seed=seed, last=last, importance=importance, shared=shared), []
    for clause, members in zip(spec.clauses, spec.assign(layout), strict=True):
        body = clause.code.encode(members, [tensors[m.name] for m in members], hints)
        sections.append(bytes([SECTION_VERSION]) + body)
    return tuple(sections)


def decode_sections(spec: CodecSpec, layout: Layout, sections: Sequence[bytes]) -> Tensors:
    """Tensors of exactly ``layout``, bit-identical on every machine.

    Raises:
        PayloadError: a section does not decode for this layout.
    """
    if len(sections) != len(spec.clauses):
        raise PayloadError(f"sections: {len(sections)}: the codec {spec} has {len(spec.clauses)}")
    try:
        assigned = spec.assign(layout)
    except ConfigError as error:
        raise PayloadError(f"sections: the codec does not fit the layout: {error}") from error
    out: Tensors = {}
    for clause, members, section in zip(spec.clauses, assigned, sections, strict=True):
        version = section[0] if section else 0
        oldest = 1 if isinstance(clause.code, SelectThenQuantize) else 2
        if not oldest <= version <= SECTION_VERSION:
            raise PayloadError(f"section.version: {version}: this library reads {oldest} to {SECTION_VERSION}")
        reader = Reader(section[1:], version)
        for member, value in zip(members, clause.code.decode(members, reader), strict=True):
            out[member.name] = value
        reader.finish()
    for name, value in out.items():
        if not np.isfinite(value).all():
            raise PayloadError(f"section: {name}: contains NaN or infinity: all values must be finite")
    return {t.name: out[t.name] for t in layout.tensors}
