"""Names of parameters without what wrappers put into them."""

from __future__ import annotations

# segments that torch.compile, FSDP and activation checkpointing put anywhere into a name
_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_FIRST = "module"  # what DistributedDataParallel and DeepSpeed put before it


def strip_wrappers(name: str) -> str:
    """Return the name that a parameter or tensor has in the model that was wrapped.

    >>> strip_wrappers("module._orig_mod.model.layers.0._checkpoint_wrapped_module.mlp.up.weight")
    'model.layers.0.mlp.up.weight'
    """
    parts = [part for part in name.split(".") if part not in _ANYWHERE]
    while len(parts) > 1 and parts[0] == _FIRST:
        parts = parts[1:]
    return ".".join(parts)
