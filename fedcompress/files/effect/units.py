"""Finds the units of an adapter: tensors that make one change of the model together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedcompress.adapters.groups import PART, PREFIX
from fedcompress.adapters.safetensors_io import TensorSource
from fedcompress.adapters.scaling import match_pattern
from fedcompress.chunks import TensorSlice
from fedcompress.files.effect.kinds import (
    EXACT,
    FACTOR,
    KINDS,
    ONE,
    OTHER_ADAPTER,
    UNPAIRED,
    VALUE,
    WHOLE_COPY,
    KindRow,
    find_unjudged,
)
from fedcompress.types import TensorSpec

_PATTERNS = tuple((re.compile(f"(?:{row.pattern})$"), row) for row in KINDS)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit is a change of the model that some tensors make together.

    Args:
        module: what is before the names of the tensors.
        legs: matrices whose product of some kind is the change: each is one tensor, or a pair (left, right) of which
            the matrix product is meant.
        entrywise: True if the legs are multiplied entry by entry; otherwise the norm of the change is the product of
            their norms, as of Kronecker and outer products.
        diagonal: name of a tensor between left and right of the only leg; empty if there is none.
        experts: how many products are in one pair, side by side: rows of the right factor are grouped by expert, and
            each column of the left one belongs to the expert that its number gives modulo this.
        scaling: what the change is multiplied by.
        offset: the value of the only tensor that means no change.
    """

    module: str
    legs: tuple[tuple[str, ...], ...]
    entrywise: bool = False
    diagonal: str = ""
    experts: int = 1
    scaling: float = 1.0
    offset: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors of the unit."""
        return tuple(n for leg in self.legs for n in leg) + ((self.diagonal,) if self.diagonal else ())

    @property
    def is_product(self) -> bool:
        """Return True if the unit is a product, whose factors may be changed without changing it."""
        return len(self.legs) > 1 or len(self.legs[0]) > 1


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Holds the units of an adapter, and of the tensors that are in none the reason why."""

    units: Mapping[str, Unit]  # by the name of each tensor that is in one
    exact: Mapping[str, str] = field(default_factory=dict)  # reason by name of a tensor that cannot be judged


def find_effects(source: TensorSource) -> Effects | None:
    """Find what an adapter consists of, from its header and config.

    Args:
        source: a PEFT folder, or a single file.

    Returns:
        The units; None for a single file without adapter tensors, whose values are judged as they are.

    Raises:
        ConfigError: a pattern of the config is no regular expression.
    """
    rows = {spec.name: _find_row(spec.name) for spec in source.layout.tensors}
    if not _is_adapter(source, rows):
        return None
    config = source.config or {}
    unjudged = find_unjudged(config)
    units: dict[str, Unit] = {}
    exact: dict[str, str] = {}
    products: dict[tuple[str, str], dict[str, TensorSpec]] = {}
    for spec in source.layout.tensors:
        module, row = rows[spec.name]
        if row.coded == EXACT:
            exact[spec.name] = row.why
        elif unjudged:
            exact[spec.name] = unjudged
        elif row.coded == FACTOR and row.role in products.get((module, row.product), {}):
            exact[spec.name] = UNPAIRED
        elif row.coded == FACTOR:
            products.setdefault((module, row.product), {})[row.role] = spec
        else:
            units[spec.name] = Unit(module=module, legs=((spec.name,),), offset=1.0 if row.coded == ONE else 0.0)
    for (module, product), members in products.items():
        unit = _BUILDERS[product](module, members, source, config)
        for name in (t.name for t in members.values()):
            if unit is not None and name in unit.names:
                units[name] = unit
            else:
                exact[name] = UNPAIRED if unit is None else "scales of the change, a number each"
    return Effects(units=_scale_values(units, rows), exact=exact)


def check_gathered(source: TensorSource) -> None:
    """Raise ``ConfigError`` if a tensor of an adapter is empty; other files may have such."""
    if not _is_adapter(source, {spec.name: _find_row(spec.name) for spec in source.layout.tensors}):
        return
    source.check_gathered()


def _is_adapter(source: TensorSource, rows: Mapping[str, tuple[str, KindRow]]) -> bool:
    """Return True for a folder, and for a file with a tensor that only adapters have; others may have an alpha."""
    return source.config is not None or any(row is not WHOLE_COPY and row.role != "alpha" for _, row in rows.values())


def _find_row(name: str) -> tuple[str, KindRow]:
    """Find the row of a tensor, and what is before the pattern in its name."""
    for pattern, row in _PATTERNS:
        if match := pattern.search(name):
            adapter = match.groupdict().get("adapter") or ""
            return (name[: match.start()] or name) + adapter, row
    return name, OTHER_ADAPTER if PART.search(name) else WHOLE_COPY


def _scale_values(units: dict[str, Unit], rows: Mapping[str, tuple[str, KindRow]]) -> dict[str, Unit]:
    """Give biases of B the scaling of their module."""
    scaling = {u.module: u.scaling for u in units.values() if u.is_product}
    for name, unit in units.items():
        if rows[name][1].coded == VALUE and unit.module in scaling:
            units[name] = Unit(module=f"{unit.module}.bias", legs=unit.legs, scaling=scaling[unit.module])
    return units


def _build_lora(
    module: str, members: Mapping[str, TensorSpec], source: TensorSource, config: Mapping[str, Any]
) -> Unit | None:
    if not _fits(members.get("b"), members.get("a")):
        return None
    a, b = members["a"], members["b"]
    diagonal = members.get("e")
    if diagonal is not None and diagonal.numel != a.shape[0]:
        return None
    name = module.removeprefix(PREFIX)
    experts = _count_experts(a.shape[0], name, config)
    if not experts:
        return None
    alpha = match_pattern(source.path, config, "alpha_pattern", name, config.get("lora_alpha"))
    if "alpha" in members and members["alpha"].numel == 1:
        alpha = float(source.read(TensorSlice(spec=members["alpha"])).reshape(()))
    own = a.shape[0] // experts
    scaling = _divide(alpha, math.sqrt(own) if config.get("use_rslora") else own)
    legs = ((b.name, a.name),)
    diagonal_name = diagonal.name if diagonal is not None else ""
    return Unit(module=module, legs=legs, diagonal=diagonal_name, experts=experts, scaling=scaling)


def _count_experts(rows: int, module: str, config: Mapping[str, Any]) -> int:
    """Count the experts whose factors are in one tensor, as PEFT has them where a parameter is a target.

    Args:
        rows: of A.
        module: name of the module, without ``PREFIX``.
        config: of the adapter.

    Returns:
        1 where a module is the target; 0 if it cannot be known.
    """
    owners = {str(name).rpartition(".")[0] for name in config.get("target_parameters") or []}
    owner = re.sub(r"(\.base_layer)+$", "", module)
    if not any(f".{owner}".endswith(f".{name}" if name else "") for name in owners):
        return 1
    rank = config.get("r")
    if config.get("rank_pattern") or type(rank) is not int or rank < 1 or rows % rank:
        return 0  # patterns are for names of parameters, which are not in the file
    return rows // rank


def _build_hira(
    module: str, members: Mapping[str, TensorSpec], source: TensorSource, config: Mapping[str, Any]
) -> Unit | None:
    if not _fits(members.get("b"), members.get("a")):
        return None
    return Unit(module=module, legs=((members["b"].name, members["a"].name),))


def _build_loha(
    module: str, members: Mapping[str, TensorSpec], source: TensorSource, config: Mapping[str, Any]
) -> Unit | None:
    pairs = [(members.get(f"{leg}_a"), members.get(f"{leg}_b")) for leg in ("w1", "w2")]
    if "core" in members or not all(_fits(*pair) for pair in pairs):
        return None
    if len({(left.shape[0], right.shape[1]) for left, right in pairs if left and right}) > 1:
        return None
    return Unit(module=module, legs=_legs(pairs), entrywise=True, scaling=_divide(config.get("alpha"), config.get("r")))


def _build_lokr(
    module: str, members: Mapping[str, TensorSpec], source: TensorSource, config: Mapping[str, Any]
) -> Unit | None:
    if "core" in members:
        return None
    legs: list[tuple[TensorSpec | None, ...]] = []
    for leg in ("w1", "w2"):
        if leg in members:
            legs.append((members[leg],))
        elif _fits(members.get(f"{leg}_a"), members.get(f"{leg}_b")):
            legs.append((members[f"{leg}_a"], members[f"{leg}_b"]))
        else:
            return None
    return Unit(module=module, legs=_legs(legs), scaling=_divide(config.get("alpha"), config.get("r")))


def _build_vera(
    module: str, members: Mapping[str, TensorSpec], source: TensorSource, config: Mapping[str, Any]
) -> Unit | None:
    if len(members) != 2:
        return None
    return Unit(module=module, legs=_legs([(members["b"],), (members["d"],)]))


_BUILDERS = {
    "lora": _build_lora,
    "hira": _build_hira,
    "loha": _build_loha,
    "lokr": _build_lokr,
    "vera": _build_vera,
}


def _legs(legs: list[Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(spec.name for spec in leg) for leg in legs)


def _fits(left: TensorSpec | None, right: TensorSpec | None) -> bool:
    """Return True if two tensors are there and multiply, kernels of the right one flattened."""
    if left is None or right is None or len(left.shape) < 2 or len(right.shape) < 2:
        return False
    return left.shape[1] == right.shape[0] and math.prod(left.shape[2:]) == 1


def _divide(alpha: Any, rank: Any) -> float:
    """Return alpha / rank; 1 if a config lacks them."""
    numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in (alpha, rank))
    return abs(alpha / rank) if numbers and rank and alpha else 1.0
