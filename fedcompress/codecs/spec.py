"""Parses spec strings, and writes them in canonical form; the grammar is in ``codecs/__init__``."""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.call_syntax import format_call, parse_call
from fedcompress.codecs.base import Quantizer, Selector, TensorCode
from fedcompress.codecs.chain import SelectThenQuantize
from fedcompress.codecs.codes.compeft import ComPEFT
from fedcompress.codecs.table import CODECS
from fedcompress.errors import ConfigError, one_of
from fedcompress.types import GROUPS, Layout, TensorSpec

# Names that stand for several tensor groups.
ALIASES: dict[str, tuple[str, ...]] = {"lora": ("lora_a", "lora_b")}


@dataclass(frozen=True)
class Clause:
    """A clause names a code for some tensor groups.

    Args:
        groups: names from ``GROUPS``; empty means all groups that no other clause names.
        code: what encodes the tensors of these groups.
    """

    groups: tuple[str, ...]
    code: TensorCode

    def __str__(self) -> str:
        match self.code:
            case SelectThenQuantize(select=select, quantize=quantize):
                text = "|".join(format_call(s) for s in (select, quantize) if s is not None)
            case code:
                text = format_call(code)
        return f"{','.join(self.groups)}: {text}" if self.groups else text


@dataclass(frozen=True)
class CodecSpec:
    """Holds a parsed spec; ``str()`` is canonical: equal codecs have equal text."""

    clauses: tuple[Clause, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.clauses))

    @classmethod
    def parse(cls, text: str, *, field: str = "codec") -> CodecSpec:
        """Parse a spec or the name of a preset.

        Args:
            text: as ``topk(density=0.05)|ternary; head: int(bits=4)``, or as ``lora-transform``.
            field: the name of the setting, for error messages.

        Raises:
            ConfigError: a name or key is unknown, or a value is out of range; the message lists the choices.
        """
        row = CODECS.get(text.strip())
        if row is not None and row.spec:
            text = row.spec
        clauses = [_parse_clause(part, field) for part in text.split(";")]
        named = [g for c in clauses for g in c.groups]
        for group in named:
            if named.count(group) > 1:
                raise ConfigError(field, text, f"group {group!r} is in more than one clause")
        if sum(not c.groups for c in clauses) > 1:
            raise ConfigError(field, text, "at most one clause may be without groups")
        return cls(tuple(clauses))

    @property
    def uses_previous_update(self) -> bool:
        """Return whether a code starts from the update that was sent before."""
        return any(c.code.uses_previous_update for c in self.clauses)

    @property
    def sparse(self) -> bool:
        """Return whether a code leaves most entries 0."""
        chains = any(isinstance(c.code, SelectThenQuantize) and c.code.select is not None for c in self.clauses)
        return chains or any(isinstance(c.code, ComPEFT) for c in self.clauses)

    def assign(self, layout: Layout) -> list[list[TensorSpec]]:
        """Return the tensors of each clause, in layout order.

        Raises:
            ConfigError: a tensor's group has no clause.
        """
        default = next((i for i, c in enumerate(self.clauses) if not c.groups), None)
        clause_by_group = {group: i for i, c in enumerate(self.clauses) for group in c.groups}
        assigned: list[list[TensorSpec]] = [[] for _ in self.clauses]
        for spec in layout.tensors:
            number = clause_by_group.get(spec.group, default)
            if number is None:
                raise ConfigError("codec", str(self), f"needs a clause for group {spec.group!r} ({spec.name})")
            assigned[number].append(spec)
        return assigned


def _parse_clause(part: str, field: str) -> Clause:
    head, colon, chain = part.rpartition(":")
    groups = _parse_groups(head, field) if colon else ()
    row = CODECS.get(chain.strip())
    if row is not None and row.spec:
        if ";" in row.spec:
            raise ConfigError(field, chain.strip(), "a preset of several clauses must stand alone")
        chain = row.spec
    stages = [_parse_stage(text, field) for text in chain.split("|")]
    code: TensorCode
    match [CODECS[s.name].kind for s in stages]:
        case ["code"]:
            code = stages[0]  # type: ignore[assignment]
        case ["quantize"]:
            code = SelectThenQuantize(None, stages[0])  # type: ignore[arg-type]
        case ["select", "quantize"]:
            code = SelectThenQuantize(*stages)  # type: ignore[arg-type]
        case _:
            rule = "must be a code, or [selection |] quantization, as topk(density=0.05)|ternary"
            raise ConfigError(field, chain.strip(), rule)
    return Clause(groups, code)


def _parse_groups(text: str, field: str) -> tuple[str, ...]:
    groups: list[str] = []
    for name in text.split(","):
        group = name.strip()
        if group not in GROUPS and group not in ALIASES:
            raise ConfigError(field, repr(group), f"group {one_of([*GROUPS, *ALIASES], group)}")
        groups += ALIASES.get(group, (group,))
    return tuple(groups)


def _parse_stage(text: str, field: str) -> Selector | Quantizer | TensorCode:
    choices = {n: r.config for n, r in CODECS.items() if r.config is not None}
    return parse_call(text, choices, field, listed=CODECS)  # people mean presets, too
