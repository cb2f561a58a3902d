"""Trains the base's own weights: the state of such a run is the difference from the base, read slice by slice."""

from fedcompress.adapters.full.modes import (
    Full,
    Layers,
    Subspace,
    TrainableSet,
    draw_round_layers,
    load_trainable_set,
    parse_trainable_set,
    trains_base_weights,
)

__all__ = [
    "Full",
    "TrainableSet",
    "Layers",
    "Subspace",
    "draw_round_layers",
    "trains_base_weights",
    "load_trainable_set",
    "parse_trainable_set",
]
