"""Spec strings, and the sections they write and read. Grammar in ``codecs/__init__``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from fedcompress.codecs.base import Quantizer, Reader, Selector, Writer
from fedcompress.codecs.entropy import read_masks, write_masks
from fedcompress.codecs.table import CODECS
from fedcompress.errors import ConfigError, PayloadError
from fedcompress.types import GROUPS, Array, Layout, Tensors, TensorSpec

SECTION_VERSION = 1
ALIASES: dict[str, tuple[str, ...]] = {"lora": ("lora_a", "lora_b")}
_STAGE = re.compile(r"([a-z][a-z0-9-]*)\s*(?:\(([^()]*)\))?")


@dataclass(frozen=True)
class Clause:
    """Stages for some tensor groups; no groups means all that no other clause names."""

    groups: tuple[str, ...]
    select: Selector | None
    quantize: Quantizer

    def __str__(self) -> str:
        stages = [s for s in (self.select, self.quantize) if s is not None]
        chain = "|".join(_stage_text(s) for s in stages)
        return f"{','.join(self.groups)}: {chain}" if self.groups else chain


@dataclass(frozen=True)
class CodecSpec:
    """A parsed spec. ``str()`` is canonical: equal codecs have equal text."""

    clauses: tuple[Clause, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.clauses))

    @classmethod
    def parse(cls, text: str, *, field: str = "codec") -> CodecSpec:
        """Parse a spec or the name of a preset.

        Raises:
            ConfigError: unknown name or key, or a value out of range; lists the choices.
        """
        row = CODECS.get(text.strip())
        if row is not None and row.spec:
            text = row.spec
        clauses: list[Clause] = []
        for part in text.split(";"):
            clauses += _parse_clause(part, field)
        named = [g for c in clauses for g in c.groups]
        for group in named:
            if named.count(group) > 1:
                raise ConfigError(field, text, f"group {group!r} is in more than one clause")
        if sum(not c.groups for c in clauses) > 1:
            raise ConfigError(field, text, "at most one clause may be without groups")
        return cls(tuple(clauses))

    def assign(self, layout: Layout) -> list[list[TensorSpec]]:
        """The tensors of each clause, in layout order.

        Raises:
            ConfigError: a tensor's group has no clause.
        """
        rest = next((i for i, c in enumerate(self.clauses) if not c.groups), None)
        index = {group: i for i, c in enumerate(self.clauses) for group in c.groups}
        out: list[list[TensorSpec]] = [[] for _ in self.clauses]
        for spec in layout.tensors:
            place = index.get(spec.group, rest)
            if place is None:
                raise ConfigError("codec", str(self), f"needs a clause for group {spec.group!r} ({spec.name})")
            out[place].append(spec)
        return out


def _stage_text(stage: Selector | Quantizer) -> str:
    args = [f"{f.name}={getattr(stage, f.name)}" for f in fields(stage) if getattr(stage, f.name) != f.default]  # type: ignore[arg-type]
    return f"{stage.name}({','.join(args)})" if args else stage.name


def _parse_clause(part: str, field: str) -> list[Clause]:
    head, colon, chain = part.rpartition(":")
    groups: list[str] = []
    for name in head.split(",") if colon else []:
        group = name.strip()
        if group not in GROUPS and group not in ALIASES:
            raise ConfigError(field, repr(group), f"group must be one of {[*GROUPS, *ALIASES]}")
        groups += ALIASES.get(group, (group,))
    row = CODECS.get(chain.strip())
    if row is not None and row.spec:
        if ";" in row.spec:
            raise ConfigError(field, chain.strip(), "a preset of several clauses must stand alone")
        chain = row.spec
    stages = [_parse_stage(text, field) for text in chain.split("|")]
    kinds = [CODECS[s.name].kind for s in stages]
    if kinds not in (["quantize"], ["select", "quantize"]):
        raise ConfigError(field, chain.strip(), "must be [selection |] quantization, as topk(density=0.05)|ternary")
    select = stages[0] if len(stages) == 2 else None
    return [Clause(tuple(groups), select, stages[-1])]  # type: ignore[arg-type]


def _parse_stage(text: str, field: str) -> Selector | Quantizer:
    match = _STAGE.fullmatch(text.strip())
    choices = [n for n, r in CODECS.items() if r.config is not None]
    if match is None:
        raise ConfigError(field, repr(text.strip()), f"must be name or name(key=value,...), name one of {choices}")
    name, body = match.group(1), match.group(2)
    row = CODECS.get(name)
    if row is None or row.config is None:
        raise ConfigError(field, name, f"must be one of {choices}")
    known = {f.name: f for f in fields(row.config)}  # type: ignore[arg-type]
    kwargs: dict[str, object] = {}
    for item in body.split(",") if body and body.strip() else []:
        key, equals, value = (s.strip() for s in item.partition("="))
        if not equals or key not in known or key in kwargs:
            raise ConfigError(
                f"{field}.{name}", item.strip(), f"must be key=value, once each, key one of {list(known)}"
            )
        kwargs[key] = _convert(value, str(known[key].type), f"{field}.{name}.{key}")
    if "density" in known and "density" not in kwargs:
        raise ConfigError(f"{field}.{name}", text.strip(), "needs density, as topk(density=0.05)")
    return row.config(**kwargs)


def _convert(value: str, kind: str, field: str) -> object:
    try:
        match kind:
            case "int":
                return int(value)
            case "float":
                return float(value)
            case _:
                return value
    except ValueError as error:
        raise ConfigError(field, repr(value), f"must be a number of type {kind}") from error


def encode_sections(spec: CodecSpec, layout: Layout, tensors: Mapping[str, Array]) -> tuple[bytes, ...]:
    """One section for each clause. Deterministic.

    Raises:
        LayoutError: ``tensors`` does not have the layout.
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    layout.check(tensors, what="encode")
    sections = []
    for clause, members in zip(spec.clauses, spec.assign(layout), strict=True):
        writer = Writer()
        writer.u8(SECTION_VERSION)
        values = [tensors[m.name].ravel() for m in members]
        if clause.select is not None:
            masks = clause.select.select(values)
            write_masks(writer, masks)
            values = [v[m] for v, m in zip(values, masks, strict=True)]
        clause.quantize.write(writer, values)
        sections.append(writer.getvalue())
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
        reader = Reader(section)
        version = reader.u8()
        if version != SECTION_VERSION:
            raise PayloadError(f"section.version: {version}: this library reads {SECTION_VERSION}")
        out |= _decode_clause(clause, members, reader)
        reader.finish()
    for name, value in out.items():
        if not np.isfinite(value).all():
            raise PayloadError(f"section: {name}: contains NaN or infinity: all values must be finite")
    return {t.name: out[t.name] for t in layout.tensors}


def _decode_clause(clause: Clause, members: Sequence[TensorSpec], reader: Reader) -> Tensors:
    if clause.select is None:
        dense = clause.quantize.read(reader, [m.numel for m in members])
        return {m.name: v.reshape(m.shape) for m, v in zip(members, dense, strict=True)}
    masks = read_masks(reader, [m.numel for m in members])
    kept = clause.quantize.read(reader, [int(m.sum()) for m in masks])
    out: Tensors = {}
    for member, mask, values in zip(members, masks, kept, strict=True):
        full = np.zeros(member.numel, np.float32)
        full[mask] = values
        out[member.name] = full.reshape(member.shape)
    return out
