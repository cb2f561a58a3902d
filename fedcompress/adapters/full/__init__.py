"""Training of the base's own weights: what a run's state is then the difference from the base, read piece by piece."""

from fedcompress.adapters.full.modes import Full, Kind, Layers, Subspace, chosen_layers, is_weights, kind_from, kind_of

__all__ = ["Full", "Kind", "Layers", "Subspace", "chosen_layers", "is_weights", "kind_from", "kind_of"]
