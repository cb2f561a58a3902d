"""Merges an adapter into its base: the result is a model folder that stock transformers loads, without PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedcompress.adapters.base_model import BaseModel, build_base, load_tokenizer
from fedcompress.adapters.full.export import HEAD
from fedcompress.config.objective import Classification, Objective
from fedcompress.errors import ConfigError


def save_merged(folder: Path, base: BaseModel, adapter: Path, objective: Objective) -> None:
    """Merge an adapter into its base, and write weights, config and tokenizer.

    The head of a mean-pooled classifier, which is no part of a transformers model, gets a file of its own.

    Args:
        folder: where to write.
        base: the model that the adapter was trained on; its dtype is that of the weights written.
        adapter: a stock PEFT folder.
        objective: what was learnt; it decides the class that the model is loaded as.

    Raises:
        ConfigError: the adapter cannot be merged into weights.
    """
    from peft import PeftModel

    module = build_base(base, objective)
    model = PeftModel.from_pretrained(module, adapter)
    _untie_adapted(model)
    try:
        merged = model.merge_and_unload()
    except (AttributeError, ValueError, TypeError, NotImplementedError) as error:
        kind = model.peft_config["default"].peft_type.value
        raise ConfigError("--merged", kind, f"cannot be merged into weights: use the PEFT folder: {error}") from error
    is_pooled = isinstance(objective, Classification) and objective.head == "mean-pool-linear"
    saved = merged.encoder if is_pooled else merged
    if isinstance(objective, Classification):
        saved.config.id2label = dict(enumerate(objective.labels))
        saved.config.label2id = {label: i for i, label in enumerate(objective.labels)}
    saved.save_pretrained(folder)
    if is_pooled:
        from safetensors.torch import save_file

        head = {f"classifier.{name}": value.contiguous() for name, value in merged.classifier.state_dict().items()}
        save_file(head, folder / HEAD, {"format": "pt"})
    load_tokenizer(base.path).save_pretrained(folder)


def _untie_adapted(model: Any) -> None:
    """Give the output embedding a matrix of its own where it shares the input's and an adapter changes one of them.

    Merging writes to weights in place, and would change both. transformers does the same for whole copies of tied
    matrices. Nothing is done where the model is not tied, or no adapter is on these matrices.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    if not hasattr(base, "get_output_embeddings"):
        return
    source, output = base.get_input_embeddings(), base.get_output_embeddings()
    layers = [layer for layer in (source, output) if isinstance(layer, BaseTunerLayer)]
    if source is None or output is None or not layers:
        return
    shared, own = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in (source, output))
    is_shared = hasattr(shared, "weight") and shared.weight is getattr(own, "weight", None)
    if not is_shared:
        return
    own.weight = torch.nn.Parameter(shared.weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
        config.tie_word_embeddings = False
