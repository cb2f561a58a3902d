"""Units are what rules step: a parameter, or the slice of one expert.

A stack holds the matrices of all experts of a layer in one parameter of shape (experts, m, n). For a rule for matrices
each expert's slice is a parameter of its own: it has a name, a state, an owner and draws of its own. The torch
parameter stays one; only what the rules see is cut. A group says under ``stacks`` how many slices each of its
parameters has, 0 for one that is not cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """A unit is what a rule sees as one parameter: a parameter of the model, or the slice of one expert.

    Args:
        name: name of the parameter; a slice has the number of its expert behind it in brackets.
        shape: shape of the whole parameter or slice.
        layer: number of the layer; -1 outside of them.
        parameter: name of the parameter that it lies in.
    """

    name: str
    shape: tuple[int, ...]
    layer: int
    parameter: str


def name_slice(name: str, expert: int) -> str:
    """Return the name of an expert's slice of a parameter.

    >>> name_slice("model.layers.0.mlp.experts.down_proj", 3)
    'model.layers.0.mlp.experts.down_proj[3]'
    """
    return f"{name}[{expert}]"


def list_units(group: Mapping[str, Any]) -> list[Unit]:
    """List what the rule of a parameter group steps, in the group's order.

    Args:
        group: parameter group, with ``names``, ``shapes``, ``layers`` and ``stacks``.

    Returns:
        A unit for each parameter, and one for each slice of a parameter that is cut.
    """
    counts = count_slices(group)
    units = []
    for name, shape, layer in zip(group["names"], group["shapes"], group["layers"], strict=True):
        if name in counts:
            units += [Unit(name_slice(name, expert), tuple(shape[1:]), layer, name) for expert in range(counts[name])]
        else:
            units.append(Unit(name, tuple(shape), layer, name))
    return units


def count_slices(group: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of slices of each parameter of a group that is cut, by name."""
    stacks = group.get("stacks") or [0] * len(group["names"])
    return {name: count for name, count in zip(group["names"], stacks, strict=True) if count}


def cut_names(names: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Return the names of units, given those of parameters.

    Args:
        names: of parameters.
        counts: how many slices those have that are cut.

    Returns:
        The names, each slice after the one before it.
    """
    units = []
    for name in names:
        units += [name_slice(name, expert) for expert in range(counts[name])] if name in counts else [name]
    return units
