"""What of a base is trained, and the choice that all places of a run make alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from fedcompress.adapters.spec import AdapterSpec
from fedcompress.errors import ConfigError
from fedcompress.numerics.philox import words
from fedcompress.numerics.seeded_bases import BASES

KEY = "weights"  # of a config, in the place of PEFT's
REFRESH = ("round",)


@dataclass(frozen=True, kw_only=True)
class Full:
    """All weights, or those with one of ``target_modules`` in their names."""

    name: ClassVar[str] = "full"
    target_modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layers:
    """All weights of ``k`` layers, drawn anew for each round, as in LISA (Pan et al. 2024, arXiv:2403.17919).

    Args:
        k: layers in a round.
        always: parts of names of what else is trained, in every round, such as ``embed_tokens``.
    """

    name: ClassVar[str] = "layers"
    k: int = 2
    always: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ConfigError("adapter.layers.k", self.k, "must be a number of layers, 1 or more")


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """Coefficients of each linear layer's weight in a seeded basis of its rows.

    Args:
        rank: coefficients of a row.
        basis: ``random`` signs, or ``dct`` cosines.
        refresh: another basis each ``round``.
        target_modules: as PEFT has it; ``all-linear`` if empty.
    """

    name: ClassVar[str] = "subspace"
    rank: int = 16
    basis: str = "random"
    refresh: str = "round"
    target_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= 4096:
            raise ConfigError("adapter.subspace.rank", self.rank, "must be from 1 to 4096")
        for key, choices in (("basis", BASES), ("refresh", REFRESH)):
            if getattr(self, key) not in choices:
                raise ConfigError(f"adapter.subspace.{key}", getattr(self, key), f"must be one of {list(choices)}")


TrainableSet = Full | Layers | Subspace
TRAINABLE_SETS: dict[str, type[Full] | type[Layers] | type[Subspace]] = {
    "full": Full,
    "layers": Layers,
    "subspace": Subspace,
}


def trains_base_weights(config: Mapping[str, Any]) -> bool:
    """Whether a config is of weights, and not of a PEFT adapter."""
    return KEY in config


def parse_trainable_set(spec: AdapterSpec) -> TrainableSet:
    """The kind that a user named.

    Raises:
        ConfigError: unknown key, or a value out of range.
    """
    kind: Callable[..., TrainableSet] = TRAINABLE_SETS[spec.name]
    settings = {}
    known = [f.name for f in fields(TRAINABLE_SETS[spec.name])]
    for key, value in spec.settings.items():
        if key not in known:
            raise ConfigError(f"adapter.{spec.name}", key, f"unknown key: must be one of {known}")
        if key in ("target_modules", "always"):
            value = tuple(value.split("+")) if isinstance(value, str) else tuple(value)
            value = () if value == ("all-linear",) else value
        settings[key] = value
    return kind(**settings)


def load_trainable_set(config: Mapping[str, Any]) -> TrainableSet:
    """The kind of a config.

    Raises:
        ConfigError: it is not of a kind that this version knows.
    """
    raw = dict(config[KEY])
    name = raw.pop("name", "")
    if name not in TRAINABLE_SETS:
        raise ConfigError("adapter.weights", name, f"must be one of {list(TRAINABLE_SETS)}")
    make: Callable[..., TrainableSet] = TRAINABLE_SETS[name]
    try:
        return make(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
    except TypeError as error:
        raise ConfigError(f"adapter.{name}", raw, "has a key that this version does not know") from error


def trainable_set_config(kind: TrainableSet) -> dict[str, Any]:
    """Its part of a config."""
    made = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(kind).items()}
    return {KEY: {"name": kind.name, **made}}


def draw_layers(kind: Layers, count: int, seed: int, round_: int) -> list[int]:
    """Layers of a round, ascending; equal wherever seed and round are.

    Raises:
        ConfigError: the model has fewer.
    """
    if kind.k > count:
        raise ConfigError("adapter.layers.k", kind.k, f"must be at most {count}, the layers of this model")
    order = np.argsort(words(seed, f"layers/{round_}", count), kind="stable")
    return sorted(int(i) for i in order[: kind.k])
