"""The start of a run that trains weights: which they are. All begin at the base, so that no value is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.adapters.base_model import BaseModel, build_base, tokenizer_digest
from fedcompress.adapters.fingerprint import base_fingerprint
from fedcompress.adapters.folder import Adapter
from fedcompress.adapters.full.attach import FullWeightsModel, attach_weights
from fedcompress.adapters.full.base_files import BaseWeights
from fedcompress.adapters.full.modes import parse_trainable_set, trainable_set_config
from fedcompress.adapters.spec import AdapterSpec
from fedcompress.adapters.template import Template, save_template
from fedcompress.chunks import TensorSlice
from fedcompress.config.objective import Objective
from fedcompress.errors import ConfigError
from fedcompress.types import zeros


def write_weights_template(folder: Path, base: BaseModel, objective: Objective, spec: AdapterSpec) -> Template:
    """Make the start of a run; the model is loaded once, to see that its files have what it has.

    Raises:
        ConfigError: the kind does not fit the model, or the model's weights are not those of its files.
    """
    kind, files = parse_trainable_set(spec), BaseWeights(base.path)
    module = build_base(base, objective)
    tied = _tied(module)
    loaded = {n: p.detach() for n, p in module.named_parameters()}
    config = {**trainable_set_config(kind), "tied": tied, "base_model_name_or_path": str(base.path.resolve())}
    weights = attach_weights(module, config, files, spec.freeze)
    _check(weights, loaded, files, spec.name)
    layout = weights.layout
    template = Template(
        adapter=Adapter(config=config, layout=layout, tensors=zeros(layout)),
        objective=objective,
        name=spec.name,
        freeze=spec.freeze,
        base_fingerprint=base_fingerprint(base.path).hex(),
        tokenizer=tokenizer_digest(base.path),
    )
    save_template(folder, template, {})
    return template


def _tied(module: Any) -> list[str]:
    """Names under which a parameter occurs again."""
    once = {n for n, _ in module.named_parameters()}
    return sorted(n for n, _ in module.named_parameters(remove_duplicate=False) if n not in once)


def _check(weights: FullWeightsModel, loaded: Mapping[str, Any], files: BaseWeights, name: str) -> None:
    """Raise unless each trained parameter is in the files as it is in the model; new heads begin at zero."""
    import torch

    new = []
    for spec in weights.layout.tensors:
        if not files.key_of(spec.name, spec.shape):
            new += [spec.name] if len(spec.shape) > 1 else []
        elif not torch.equal(torch.from_numpy(files.read(TensorSlice(spec=spec))), loaded[spec.name].float()):
            rule = f"cannot train {spec.name}: the model changes it when it is loaded; leave it out with freeze"
            raise ConfigError("adapter", name, rule)
    if len(new) > 1:
        rule = f"cannot train {new}: they are not in the base, and would all begin at zero; use a head of one layer"
        raise ConfigError("adapter", name, rule)
