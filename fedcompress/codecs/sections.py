"""Encodes tensors to sections and decodes them again: one section for each clause of a spec.

A section is one version byte and the body that the clause's code wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedcompress.codecs.base import EncoderHints
from fedcompress.codecs.byte_io import SECTION_VERSION, Reader
from fedcompress.codecs.chain import SelectThenQuantize
from fedcompress.codecs.spec import CodecSpec
from fedcompress.errors import ConfigError, PayloadError
from fedcompress.types import Array, Layout, Tensors, TensorSpec


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
    """Encode tensors to one section for each clause of the codec.

    Args:
        spec: the codec.
        layout: the layout of ``tensors``.
        tensors: float32 arrays by name, all finite. They are not changed.
        seed: of all randomness, from 0 to 2^63 - 1; equal seeds give equal bytes.
        last: the sender's update before this one, as decoded; codes that iterate start from it. None if there is none.
        importance: how much errors count, by tensor name; see ``EncoderHints``. None weighs all alike.
        shared: the seed that all senders of a round have; see ``EncoderHints``.

    Returns:
        The sections, in the order of the clauses.

    Raises:
        LayoutError: ``tensors`` does not have the layout.
        NonFiniteError: a value is NaN or infinite; names the tensor.
        ConfigError: a tensor's group has no clause.
    """
    layout.check(tensors, what="encode")
    hints = EncoderHints(seed=seed, last=last, importance=importance, shared=shared)
    sections = []
    for clause, members in zip(spec.clauses, spec.assign(layout), strict=True):
        body = clause.code.encode(members, [tensors[m.name] for m in members], hints)
        sections.append(bytes([SECTION_VERSION]) + body)
    return tuple(sections)


def decode_sections(spec: CodecSpec, layout: Layout, sections: Sequence[bytes]) -> Tensors:
    """Decode sections to float32 tensors of exactly a layout, bit-identical on every machine.

    Args:
        spec: the codec that the sections were encoded with.
        layout: the receiver's own layout; it decides names, shapes and order.
        sections: one for each clause.

    Returns:
        The tensors by name, in layout order, all finite.

    Raises:
        PayloadError: a section does not decode for this layout.
    """
    if len(sections) != len(spec.clauses):
        raise PayloadError(f"sections: {len(sections)}: the codec {spec} has {len(spec.clauses)}")
    try:
        assigned = spec.assign(layout)
    except ConfigError as error:
        raise PayloadError(f"sections: the codec does not fit the layout: {error}") from error
    tensors: Tensors = {}
    for clause, members, section in zip(spec.clauses, assigned, sections, strict=True):
        version = section[0] if section else 0
        oldest = 1 if isinstance(clause.code, SelectThenQuantize) else 2
        if not oldest <= version <= SECTION_VERSION:
            raise PayloadError(f"section.version: {version}: this library reads {oldest} to {SECTION_VERSION}")
        reader = Reader(section[1:], version)
        for member, value in zip(members, clause.code.decode(members, reader), strict=True):
            tensors[member.name] = value
        reader.finish()
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise PayloadError(f"section: {name}: contains NaN or infinity: all values must be finite")
    return {t.name: tensors[t.name] for t in layout.tensors}


@dataclass(frozen=True)
class Preview:
    """Shows what a codec makes of one tensor; ``str()`` is one line, with the first nine entries.

    Args:
        size: bytes of all sections, version bytes included, headers of an envelope not.
        decoded: float32, what a receiver gets.
        error: the squared error as a share of the squared norm; 0 for an exact codec.
    """

    size: int
    decoded: Array
    error: float

    def __str__(self) -> str:
        numbers = [f"{value + 0:.3g}" for value in self.decoded.ravel()[:9]]  # + 0 makes -0 a 0
        if self.decoded.size > 9:
            numbers.append("...")
        return f"{self.size} bytes, relative squared error {self.error:.2g}: [{', '.join(numbers)}]"


def preview(spec: str, values: ArrayLike, group: str = "other") -> Preview:
    """Encode one tensor by a spec and decode it again, to see size and error.

    Args:
        spec: a codec in text, as ``CodecSpec.parse`` takes it.
        values: finite numbers in an array, or nested lists, of any shape. They are rounded to float32 first.
        group: the tensor's group, for specs that code groups differently.

    Returns:
        The size of the sections, the decoded tensor, and its error.

    Raises:
        ConfigError: the spec is not one, or has no clause for the group.
        NonFiniteError: a value is NaN or infinite.
    """
    tensor = np.array(values, np.float32, order="C")
    layout = Layout((TensorSpec(name="tensor", shape=tensor.shape, group=group),))
    codec = CodecSpec.parse(spec)
    sections = encode_sections(codec, layout, {"tensor": tensor})
    decoded = decode_sections(codec, layout, sections)["tensor"]
    norm = float(np.square(tensor, dtype=np.float64).sum())
    error = float(np.square(tensor.astype(np.float64) - decoded).sum())
    return Preview(sum(map(len, sections)), decoded, error / norm if norm else error)
