"""Merges an adapter into its base: the result is a model folder that stock transformers loads, without PEFT."""

from __future__ import annotations

from pathlib import Path

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
