"""Training of the base's own weights: what a run's state is then the difference from the base, read piece by piece."""

from fedcompress.adapters.full.modes import (
    Full,
    Layers,
    Subspace,
    TrainableSet,
    draw_layers,
    load_trainable_set,
    parse_trainable_set,
    trains_base_weights,
)

__all__ = [
    "Full",
    "TrainableSet",
    "Layers",
    "Subspace",
    "draw_layers",
    "trains_base_weights",
    "load_trainable_set",
    "parse_trainable_set",
]
