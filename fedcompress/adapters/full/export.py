"""A published state as a model folder that stock transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.adapters.base_model import TOKENIZER_FILES
from fedcompress.adapters.export import export_adapter
from fedcompress.adapters.folder import STORED_AS
from fedcompress.adapters.full.base_files import BaseWeights
from fedcompress.adapters.full.modes import Subspace, load_trainable_set, trains_base_weights
from fedcompress.adapters.safetensors_io import Sink
from fedcompress.adapters.template import Template
from fedcompress.chunks import ROUND_CHUNK_ENTRIES, TensorSlice, read_slices, split_layout
from fedcompress.codecs import CodecSpec
from fedcompress.config.objective import Classification
from fedcompress.errors import ConfigError
from fedcompress.types import Array, Layout, TensorSpec

MODEL, HEAD = "model.safetensors", "classifier.safetensors"


def base_of(template: Template) -> BaseWeights:
    """Files of the base, where the template was made from them.

    Raises:
        ConfigError: it is not there any more.
    """
    path = Path(str(template.adapter.config["base_model_name_or_path"]))
    if not (path / "config.json").is_file():
        raise ConfigError("initial-adapter", path, "must be the base model's folder: the trained model is made from it")
    return BaseWeights(path)


def check_run(template: Template, codec: str, downlink_codec: str) -> None:
    """Raise unless a coordinator can begin a run that trains weights: the base is there, and codecs fit the kind.

    Raises:
        ConfigError: they do not.
    """
    if not trains_base_weights(template.adapter.config):
        return
    _ = base_of(template).entries
    kind = load_trainable_set(template.adapter.config)
    if not isinstance(kind, Subspace):
        return
    for field, text in (("codec", codec), ("downlink-codec", downlink_codec)):
        codes = [clause.code for clause in CodecSpec.parse(text, field=field).clauses]
        if any((getattr(c, "rank", 0), getattr(c, "basis", "")) != (kind.rank, kind.basis) for c in codes):
            wanted = f"subspace(rank={kind.rank},basis={kind.basis})"
            raise ConfigError(field, text, f"must be {wanted}, with bits as you like: so only coefficients travel")


def export_run(folder: Path, template: Template, state: Mapping[str, Array], constants: Mapping[str, Any]) -> None:
    """Write what a run has made: a model, or a stock PEFT adapter.

    Raises:
        ConfigError: the base of a model is not where the template was made from it.
    """
    if trains_base_weights(template.adapter.config):
        export_model(folder, template, state)
    else:
        export_adapter(folder, template, state, constants)


def export_model(folder: Path, template: Template, state: Mapping[str, Array]) -> None:
    """Write config, tokenizer and weights: base plus state, in float32, piece by piece.

    The head of a mean-pooled classifier, which is no part of a transformers model, is in a file of its own.

    Raises:
        ConfigError: the base is not where the template was made from it.
    """
    files, layout = base_of(template), template.adapter.layout
    keys = {t.name: files.key_of(t.name, t.shape) for t in layout.tensors}
    is_pooled = isinstance(template.objective, Classification) and template.objective.head == "mean-pool-linear"
    added = _prefix({n: k for n, k in keys.items() if k})
    prefix = "" if is_pooled else added
    new = [t for t in layout.tensors if not keys[t.name]]
    renamed = {t.name: prefix + (keys[t.name] or t.name) for t in layout.tensors if keys[t.name]}
    renamed |= {} if is_pooled else {t.name: t.name for t in new}
    dropped = set(template.adapter.config.get("tied", ()))
    rest = {
        prefix + key: entry
        for key, entry in files.entries.items()
        if prefix + key not in renamed.values() and not {key, added + key} & dropped and entry.dtype in STORED_AS
    }
    specs = [TensorSpec(name=renamed[t.name], shape=t.shape) for t in layout.tensors if t.name in renamed]
    specs += [TensorSpec(name=name, shape=entry.shape) for name, entry in rest.items()]
    folder.mkdir(parents=True, exist_ok=True)
    with Sink(folder / MODEL, Layout(tuple(specs)), {"format": "pt"}) as sink:
        for pieces in split_layout(Layout(tuple(t for t in layout.tensors if t.name in renamed)), ROUND_CHUNK_ENTRIES):
            change = read_slices(state, pieces)
            for piece in pieces:
                name = piece.spec.name
                sink.write(_named(piece, renamed[name]), files.read(piece) + change[name])
        for name, entry in rest.items():
            spec = TensorSpec(name=name.removeprefix(prefix), shape=entry.shape)
            for (piece,) in ([p] for part in split_layout(Layout((spec,)), ROUND_CHUNK_ENTRIES) for p in part):
                sink.write(_named(piece, name), files.read(piece))
    if is_pooled and new:
        with Sink(folder / HEAD, Layout(tuple(new)), {"format": "pt"}) as sink:
            for spec in new:
                sink.write(TensorSlice(spec=spec), state[spec.name])
    _describe(folder, files.folder, template)


def _named(piece: TensorSlice, name: str) -> TensorSlice:
    spec = TensorSpec(name=name, shape=piece.spec.shape)
    return TensorSlice(spec=spec, start=piece.start, total=piece.total)


def _prefix(keys: Mapping[str, str]) -> str:
    """What the model's class puts before the names in the files."""
    found = {name.removesuffix(key) for name, key in keys.items() if name.endswith(key)}
    return found.pop() if len(found) == 1 else ""


def _describe(folder: Path, base: Path, template: Template) -> None:
    """The base's config and tokenizer; the weights are float32, and have the labels of the run."""
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
