"""Loads what a run has exported, or what others have saved like it, to be measured: an adapter, or a model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcompress.adapters.base_model import BaseModel, build_base
from fedcompress.adapters.card import LABELS
from fedcompress.adapters.folder import CONFIG_FILE
from fedcompress.adapters.full.export import HEAD
from fedcompress.adapters.safetensors_io import open_source
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM, objective_from
from fedcompress.errors import ConfigError, MismatchError

if TYPE_CHECKING:
    from torch.nn import Module

# Ends of the names of input embeddings.
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight", "embed_in.weight")
_BY_TASK_TYPE: dict[str, Objective] = {"CAUSAL_LM": CausalLM(), "SEQ_2_SEQ_LM": Seq2SeqLM()}
_BY_CLASS: dict[str, Objective] = {"ForCausalLM": CausalLM(), "LMHeadModel": CausalLM()}
_BY_CLASS |= {"ForConditionalGeneration": Seq2SeqLM()}


def is_adapter(folder: Path) -> bool:
    """Return True if a folder is an adapter's."""
    return (folder / CONFIG_FILE).is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of an adapter; empty for a model's folder.

    Raises:
        ConfigError: the config cannot be read.
    """
    return _read_json(folder / CONFIG_FILE) if is_adapter(folder) else {}


def read_base_name(folder: Path) -> str:
    """Return the base model that an adapter's config names; empty if it names none.

    Raises:
        ConfigError: the config cannot be read.
    """
    return str(read_config(folder).get("base_model_name_or_path") or "")


def read_objective(folder: Path, labels: tuple[str, ...] = ()) -> Objective:
    """Find out what the model of a folder has learnt.

    An export of a run says so in ``labels.json``; else it is the adapter's task type, or the class in a model's config.

    Args:
        folder: an adapter's or a model's.
        labels: class names in the order of the logits, for a classifier whose folder does not say them.

    Returns:
        The objective.

    Raises:
        ConfigError: nothing says it, or a classifier's labels are not known.
    """
    if (folder / LABELS).is_file():
        known = objective_from({"name": "classification", **_read_json(folder / LABELS)}, field=LABELS)
        if labels and isinstance(known, Classification) and labels != known.labels:
            raise ConfigError("--labels", list(labels), f"must be those of {LABELS}: {list(known.labels)}")
        return known
    config = _read_json(folder / (CONFIG_FILE if is_adapter(folder) else "config.json"))
    task_type = str(config.get("task_type") or "")
    kinds = [str(name) for name in config.get("architectures") or ()]
    if task_type == "SEQ_CLS" or any(kind.endswith("ForSequenceClassification") for kind in kinds):
        named = config.get("id2label") or {}
        found = labels or tuple(str(named[key]) for key in sorted(named, key=int))
        if not found:
            raise ConfigError("--labels", "nothing", f"must name the classes: {folder} does not")
        return Classification(labels=found, head="stock")
    by_class = next((o for end, o in _BY_CLASS.items() if any(kind.endswith(end) for kind in kinds)), None)
    objective = _BY_TASK_TYPE.get(task_type) or by_class
    if objective is None:
        what = repr(task_type) if is_adapter(folder) else kinds
        raise ConfigError("FOLDER", what, f"must tell a classifier or a language model: {folder} has no {LABELS}")
    return objective


def load_base(folder: Path, base: BaseModel, objective: Objective) -> Module:
    """Load the model that a folder is, or that its adapter is put on.

    Args:
        folder: an adapter's or a model's.
        base: an adapter's base, or the model itself.
        objective: what was learnt.

    Returns:
        The model, in evaluation mode. The head of a classifier that an adapter brings is not trained.

    Raises:
        ConfigError: it cannot be loaded.
    """
    module = build_base(base, objective)
    head = folder / HEAD
    if not is_adapter(folder) and head.is_file():
        from safetensors.torch import load_file

        tensors = {name.removeprefix("classifier."): value for name, value in load_file(head).items()}
        module.classifier.load_state_dict(tensors)  # type: ignore[operator, union-attr]
    module.eval()
    return module


def put_adapter(module: Module, folder: Path) -> Any:
    """Put an adapter on its base with stock PEFT; embeddings that have grown grow first.

    Args:
        module: the base, which is changed.
        folder: the adapter's.

    Returns:
        The model with the adapter, in evaluation mode.

    Raises:
        MismatchError: PEFT cannot put it there, or tensors of the adapter's modules are not in the folder.
    """
    from peft import PeftModel

    rows = _count_embedding_rows(folder)
    if rows and hasattr(module, "resize_token_embeddings"):
        current = module.get_input_embeddings().weight.shape[0]
        if rows != current:
            module.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(module, folder)
        except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
            raise MismatchError("adapter", f"FOLDER: {folder}: does not fit its base: {error}") from error
    missing = next((str(w.message) for w in caught if "missing adapter keys" in str(w.message)), "")
    if missing:
        raise MismatchError("adapter", f"FOLDER: {folder}: is of another model, or is incomplete: {missing[:400]}")
    return model.eval()


def _count_embedding_rows(folder: Path) -> int:
    """Count the rows of the input embedding that an adapter's folder brings whole; 0 if it brings none."""
    tensors = open_source(folder, "FOLDER", keep=True).layout.tensors
    return next((t.shape[0] for t in tensors if t.name.endswith(_EMBEDDINGS)), 0)


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: the file is absent, or no JSON object.
    """
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("FOLDER", path, "must be a readable JSON file") from error
    if not isinstance(parsed, dict):
        raise ConfigError("FOLDER", path, "must be a JSON object")
    return parsed
