"""Exports a state of a run that trains the base's own weights, as a model folder that stock transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.adapters.base_model import TOKENIZER_FILES
from fedcompress.adapters.card import RunFacts, write_card
from fedcompress.adapters.export import export_adapter
from fedcompress.adapters.folder import STORED_AS
from fedcompress.adapters.full.base_files import BaseWeights, Entry
from fedcompress.adapters.full.modes import Subspace, load_trainable_set, trains_base_weights
from fedcompress.adapters.safetensors_io import Sink
from fedcompress.adapters.template import Template
from fedcompress.chunks import ROUND_CHUNK_ENTRIES, TensorSlice, read_slices, split_layout
from fedcompress.codecs import CodecSpec
from fedcompress.config.objective import Classification
from fedcompress.errors import ConfigError
from fedcompress.types import Array, Layout, TensorSpec

MODEL = "model.safetensors"  # the weights, as transformers looks for them
HEAD = "classifier.safetensors"  # the head of a mean-pooled classifier, which transformers does not know


def open_base_weights(template: Template) -> BaseWeights:
    """Open the base's files where they were when the template was made.

    Raises:
        ConfigError: the base is not there any more.
    """
    path = Path(str(template.adapter.config["base_model_name_or_path"]))
    if not (path / "config.json").is_file():
        raise ConfigError("initial-adapter", path, "must be the base model's folder: the trained model is made from it")
    return BaseWeights(path)


def check_run(template: Template, codec: str, downlink_codec: str) -> None:
    """Raise ``ConfigError`` unless a coordinator can begin a run that trains the base's own weights.

    Such a coordinator needs the base's files. With a subspace, both codecs must be those of the same rank and basis,
    so that nothing but coefficients travels. A run of a PEFT adapter passes.

    Args:
        template: what the run starts from.
        codec: of the updates.
        downlink_codec: of the published states.

    Raises:
        ConfigError: the base is not there, or a codec does not fit the subspace.
    """
    if not trains_base_weights(template.adapter.config):
        return
    _ = open_base_weights(template).entries  # reads the headers
    subspace = load_trainable_set(template.adapter.config)
    if not isinstance(subspace, Subspace):
        return
    for field, text in (("codec", codec), ("downlink-codec", downlink_codec)):
        for clause in CodecSpec.parse(text, field=field).clauses:
            rank = getattr(clause.code, "rank", 0)
            basis = getattr(clause.code, "basis", "")
            if (rank, basis) != (subspace.rank, subspace.basis):
                call = f"subspace(rank={subspace.rank},basis={subspace.basis})"
                raise ConfigError(field, text, f"must be {call}, with bits as you like: so only coefficients travel")


def export_run(
    folder: Path,
    template: Template,
    state: Mapping[str, Array],
    constants: Mapping[str, Any],
    facts: RunFacts | None = None,
) -> None:
    """Export what a run has learnt: a model if it trained the base's own weights, else a stock PEFT adapter.

    Args:
        folder: where to write.
        template: what the run started from.
        state: float32 values by name, as in the template's layout.
        constants: numpy arrays by name, as in the template's constants.safetensors.
        facts: of the run; with them, card and labels are written beside the weights.

    Raises:
        ConfigError: the base of a model is not where it was when the template was made.
    """
    config = template.adapter.config
    is_model = trains_base_weights(config)
    if is_model:
        export_model(folder, template, state)
    else:
        export_adapter(folder, template, state, constants)
    if facts is not None:
        base = str(config.get("base_model_name_or_path") or "BASE")
        write_card(folder, base, template.objective, facts, is_adapter=not is_model)


def export_model(folder: Path, template: Template, state: Mapping[str, Array]) -> None:
    """Write config, tokenizer and weights: base plus state, in float32, slice by slice.

    The head of a mean-pooled classifier, which is no part of a transformers model, gets a file of its own.

    Args:
        folder: where to write.
        template: what the run started from.
        state: differences from the base, float32 by name, in memory or in a file.

    Raises:
        ConfigError: the base is not where it was when the template was made.
    """
    base = open_base_weights(template)
    layout = template.adapter.layout
    names = _choose_names(template, base)
    trained = Layout(tuple(t for t in layout.tensors if t.name in names.trained))
    specs = [TensorSpec(name=names.trained[t.name], shape=t.shape) for t in trained.tensors]
    specs += [TensorSpec(name=name, shape=entry.shape) for name, (_, entry) in names.untrained.items()]
    folder.mkdir(parents=True, exist_ok=True)
    with Sink(folder / MODEL, Layout(tuple(specs)), {"format": "pt"}) as sink:
        for slices in split_layout(trained, ROUND_CHUNK_ENTRIES):
            changes = read_slices(state, slices)
            for piece in slices:
                name = piece.spec.name
                sink.write(_rename(piece, names.trained[name]), base.read(piece) + changes[name])
        for name, (key, entry) in names.untrained.items():
            stored = Layout((TensorSpec(name=key, shape=entry.shape),))
            for slices in split_layout(stored, ROUND_CHUNK_ENTRIES):
                for piece in slices:
                    sink.write(_rename(piece, name), base.read(piece))
    if names.separate_head:
        with Sink(folder / HEAD, Layout(names.separate_head), {"format": "pt"}) as sink:
            for spec in names.separate_head:
                sink.write(TensorSlice(spec=spec), state[spec.name])
    _write_config(folder, base.folder, template)


@dataclass(frozen=True)
class _Names:
    """Names that tensors have in the exported file."""

    trained: Mapping[str, str]  # name in the layout -> in the file
    untrained: Mapping[str, tuple[str, Entry]]  # name in the file -> name in the base's files, and where it is there
    separate_head: tuple[TensorSpec, ...]  # tensors of the layout that get a file of their own


def _choose_names(template: Template, base: BaseWeights) -> _Names:
    """Choose names as the model's class saves them, with its prefix, or as the base's files if its head is ours."""
    tensors = template.adapter.layout.tensors
    objective = template.objective
    is_pooled = isinstance(objective, Classification) and objective.head == "mean-pool-linear"
    keys = {t.name: base.find_key(t.name, t.shape) for t in tensors}
    class_prefix = _find_prefix({name: key for name, key in keys.items() if key})
    prefix = "" if is_pooled else class_prefix
    trained = {name: prefix + key for name, key in keys.items() if key}
    new = tuple(t for t in tensors if not keys[t.name])
    if not is_pooled:
        trained |= {t.name: t.name for t in new}
    tied = set(template.adapter.config.get("tied", ()))
    used_names = set(trained.values())
    untrained = {}
    for key, entry in base.entries.items():
        is_tied = key in tied or class_prefix + key in tied
        if prefix + key not in used_names and not is_tied and entry.dtype in STORED_AS:
            untrained[prefix + key] = (key, entry)
    return _Names(trained, untrained, separate_head=new if is_pooled else ())


def _rename(piece: TensorSlice, name: str) -> TensorSlice:
    spec = TensorSpec(name=name, shape=piece.spec.shape)
    return TensorSlice(spec=spec, start=piece.start, total=piece.total)


def _find_prefix(keys: Mapping[str, str]) -> str:
    """Find what the model's class puts before the names in its files; empty if it is not one and the same."""
    prefixes = {name.removesuffix(key) for name, key in keys.items() if name.endswith(key)}
    return prefixes.pop() if len(prefixes) == 1 else ""


def _write_config(folder: Path, base: Path, template: Template) -> None:
    """Write the base's config, for float32 weights and with the labels of the run, and copy its tokenizer."""
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    objective = template.objective
    if isinstance(objective, Classification):
        config["id2label"] = {str(i): label for i, label in enumerate(objective.labels)}
        config["label2id"] = {label: i for i, label in enumerate(objective.labels)}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for pattern in (*TOKENIZER_FILES, "generation_config.json"):
        for file in base.glob(pattern):
            shutil.copyfile(file, folder / file.name)
