"""Merges an adapter into its base: the result is a model folder that stock transformers loads, without PEFT."""

from __future__ import annotations

from pathlib import Path

from fedcompress.adapters.base_model import BaseModel, build_base, load_tokenizer
from fedcompress.config.objective import Classification, Objective
from fedcompress.errors import ConfigError


def save_merged(folder: Path, base: BaseModel, adapter: Path, objective: Objective) -> None:
    """Merge an adapter into its base, and write weights, config and tokenizer.

    Args:
        folder: where to write.
        base: the model that the adapter was trained on; its dtype is that of the weights written.
        adapter: a stock PEFT folder.
        objective: what was learnt; it decides the class that the model is loaded as.

    Raises:
        ConfigError: transformers has no such head, or the adapter cannot be merged into weights.
    """
    from peft import PeftModel

    if isinstance(objective, Classification) and objective.head != "stock":
        rule = "is no head of transformers: export the PEFT folder; templates with --head stock can be merged"
        raise ConfigError("--merged", objective.head, rule)
    module = build_base(base, objective)
    model = PeftModel.from_pretrained(module, adapter)
    try:
        merged = model.merge_and_unload()
    except (AttributeError, ValueError, TypeError, NotImplementedError) as error:
        kind = model.peft_config["default"].peft_type.value
        raise ConfigError("--merged", kind, f"cannot be merged into weights: use the PEFT folder: {error}") from error
    if isinstance(objective, Classification):
        merged.config.id2label = dict(enumerate(objective.labels))
        merged.config.label2id = {label: i for i, label in enumerate(objective.labels)}
    merged.save_pretrained(folder)
    load_tokenizer(base.path).save_pretrained(folder)
