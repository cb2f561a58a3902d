"""Defines the trainable sets: which of the base's own weights a run trains, the same at all its sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from fedcompress.adapters.spec import AdapterSpec
from fedcompress.errors import ConfigError, one_of
from fedcompress.numerics.philox import words
from fedcompress.numerics.seeded_bases import BASES

KEY = "weights"  # the key of a config that has a trainable set, where others have fields of PEFT's
REFRESH = ("round",)  # when a subspace gets another basis
_NAME_LISTS = ("target_modules", "always")  # fields whose values are parts of names, joined by + in a call


@dataclass(frozen=True, kw_only=True)
class Full:
    """Trains all weights, or those with one of ``target_modules`` in their names."""

    name: ClassVar[str] = "full"
    target_modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Trains all weights of ``k`` layers, which are drawn anew for each round.

    The idea is that of LISA (Pan et al. 2024, arXiv:2403.17919), which draws anew every few steps of one machine.

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
    """Trains the coefficients of each linear layer's weight in a seeded basis of its rows.

    Args:
        rank: coefficients of a row, from 1 to 4096.
        basis: ``random`` signs, or ``dct`` cosines.
        refresh: when another basis is taken: each ``round``.
        target_modules: names of modules, as PEFT has them; all linear layers but the output layer if empty.
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
                raise ConfigError(f"adapter.subspace.{key}", getattr(self, key), one_of(choices, getattr(self, key)))


TrainableSet = Full | Layers | Subspace
TRAINABLE_SETS: dict[str, type[Full] | type[Layers] | type[Subspace]] = {
    "full": Full,
    "layers": Layers,
    "subspace": Subspace,
}


def trains_base_weights(config: Mapping[str, Any]) -> bool:
    """Return True if a run's config has a trainable set, and False if it is one of a PEFT adapter."""
    return KEY in config


def parse_trainable_set(spec: AdapterSpec) -> TrainableSet:
    """Build the trainable set that a user named in a call such as ``layers(k=2,always=embed_tokens)``.

    Raises:
        ConfigError: a key is unknown, or a value is out of range.
    """
    build: Callable[..., TrainableSet] = TRAINABLE_SETS[spec.name]
    known = [f.name for f in fields(TRAINABLE_SETS[spec.name])]
    settings = {}
    for key, value in spec.settings.items():
        if key not in known:
            raise ConfigError(f"adapter.{spec.name}", key, f"unknown key: {one_of(known, key)}")
        if key in _NAME_LISTS:
            names = tuple(value.split("+")) if isinstance(value, str) else tuple(value)
            settings[key] = () if names == ("all-linear",) else names
        else:
            settings[key] = value
    return build(**settings)


def load_trainable_set(config: Mapping[str, Any]) -> TrainableSet:
    """Load the trainable set of a run's config, as ``trainable_set_config`` writes it.

    Raises:
        ConfigError: this version knows no such set.
    """
    settings = dict(config[KEY])
    name = settings.pop("name", "")
    if name not in TRAINABLE_SETS:
        raise ConfigError("adapter.weights", name, one_of(TRAINABLE_SETS, name))
    build: Callable[..., TrainableSet] = TRAINABLE_SETS[name]
    try:
        return build(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    except TypeError as error:
        raise ConfigError(f"adapter.{name}", settings, "has a key that this version does not know") from error


def trainable_set_config(trainable_set: TrainableSet) -> dict[str, Any]:
    """Return the part of a run's config that has the trainable set, in the types of JSON."""
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(trainable_set).items()}
    return {KEY: {"name": trainable_set.name, **settings}}


def draw_round_layers(trainable_set: Layers, count: int, seed: int, round_: int) -> list[int]:
    """Draw the layers that are trained in a round, the same on every machine.

    Args:
        trainable_set: says how many are drawn.
        count: layers of the model.
        seed: of the run.
        round_: the round's number; each round has a draw of its own.

    Returns:
        Numbers of layers from 0, ascending.

    Raises:
        ConfigError: the model has fewer layers than are to be drawn.
    """
    if trainable_set.k > count:
        raise ConfigError("adapter.layers.k", trainable_set.k, f"must be at most {count}, the layers of this model")
    order = np.argsort(words(seed, f"layers/{round_}", count), kind="stable")
    return sorted(int(i) for i in order[: trainable_set.k])
