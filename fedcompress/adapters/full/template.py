"""Builds the template of a run that trains the base's own weights: it says which, and needs no values.

All sites begin at the base, so that the first state, the difference from it, is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedcompress.adapters.base_model import BaseModel, build_base, tokenizer_digest
from fedcompress.adapters.fingerprint import base_fingerprint
from fedcompress.adapters.folder import Adapter
from fedcompress.adapters.full.attach import FullWeightsModel, attach_weights
from fedcompress.adapters.full.base_files import BaseWeights
from fedcompress.adapters.full.modes import parse_trainable_set, trainable_set_config
from fedcompress.adapters.positions import count_positions
from fedcompress.adapters.spec import AdapterSpec
from fedcompress.adapters.template import Template, save_template
from fedcompress.chunks import TensorSlice
from fedcompress.config.objective import Objective
from fedcompress.errors import ConfigError
from fedcompress.types import zeros

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def write_weights_template(folder: Path, base: BaseModel, objective: Objective, spec: AdapterSpec) -> Template:
    """Build the start of a run and write it to a folder.

    The model is loaded once, to see that its trained parameters are in its files as they are in memory.

    Args:
        folder: where to write.
        base: the base model; its folder must have safetensors files.
        objective: what is learnt.
        spec: names the trainable set: ``full``, ``layers`` or ``subspace``.

    Returns:
        What was written.

    Raises:
        ConfigError: the trainable set does not fit the model, or the model's weights are not those of its files.
    """
    trainable_set = parse_trainable_set(spec)
    files = BaseWeights(base.path)
    module = build_base(base, objective)
    tied = _find_tied_names(module)
    loaded = {n: p.detach() for n, p in module.named_parameters()}
    config = {
        **trainable_set_config(trainable_set),
        "tied": tied,
        "base_model_name_or_path": str(base.path.resolve()),
    }
    weights = attach_weights(module, config, files, spec.freeze)
    _check_files(weights, loaded, files, spec.name)
    layout = weights.layout
    template = Template(
        adapter=Adapter(config=config, layout=layout, tensors=zeros(layout)),
        objective=objective,
        positions=count_positions(base.path, {}),
        name=spec.name,
        freeze=spec.freeze,
        base_fingerprint=base_fingerprint(base.path).hex(),
        tokenizer=tokenizer_digest(base.path),
    )
    save_template(folder, template, {})
    return template


def _find_tied_names(module: Module) -> list[str]:
    """Find the second and further names of parameters that occur more than once."""
    first_names = {n for n, _ in module.named_parameters()}
    return sorted(n for n, _ in module.named_parameters(remove_duplicate=False) if n not in first_names)


def _check_files(weights: FullWeightsModel, loaded: Mapping[str, Tensor], files: BaseWeights, name: str) -> None:
    """Raise unless each trained parameter is in the files as it is in the model; new heads begin at zero."""
    import torch

    new_matrices = []
    for spec in weights.layout.tensors:
        if not files.find_key(spec.name, spec.shape):
            if len(spec.shape) > 1:
                new_matrices.append(spec.name)
            continue
        stored = torch.from_numpy(files.read(TensorSlice(spec=spec)))
        if not torch.equal(stored, loaded[spec.name].float()):
            rule = f"cannot train {spec.name}: the model changes it when it is loaded; leave it out with freeze"
            raise ConfigError("adapter", name, rule)
    if len(new_matrices) > 1:
        reason = "they are not in the base, and would all begin at zero; use a head of one layer"
        raise ConfigError("adapter", name, f"cannot train {new_matrices}: {reason}")
