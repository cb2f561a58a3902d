"""Finds and loads the frozen base model: where it is, in what precision, and as what kind of model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcompress.adapters.fingerprint import SOURCE, WEIGHTS
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM
from fedcompress.errors import ConfigError, MissingPackageError, one_of

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "8bit", "4bit")
ATTENTIONS = ("", "sdpa", "eager", "flash_attention_2")  # empty, or names that transformers gives its implementations
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model", "chat_template*")


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Names a base model on this machine, and says how it is to be loaded.

    Args:
        path: a folder with config.json and weights as safetensors or GGUF.
        dtype: of the weights that are not quantised.
        quantization: ``4bit`` is NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314,
            section 3), ``8bit`` is LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339); both by bitsandbytes.
        attention: the implementation of attention in transformers; empty: the one that it chooses for the model.
        gradient_checkpointing: compute activations again in the backward pass, which saves memory.
        compile: pass the model through ``torch.compile``.
    """

    path: Path
    dtype: str = "float32"
    quantization: str = "none"
    attention: str = ""
    gradient_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("dtype", DTYPES), ("quantization", QUANTIZATIONS), ("attention", ATTENTIONS)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"model.{name}", getattr(self, name), one_of(choices, getattr(self, name)))
        if not (self.path / "config.json").is_file() and not list(self.path.glob("*.gguf")):
            raise ConfigError("model.path", self.path, "must be a folder with config.json and weights, or a GGUF file")


def cache_folder() -> Path:
    """Return the folder for converted models: ``FEDCOMPRESS_CACHE``, or ``fedcompress`` in the user's cache."""
    if own_cache := os.environ.get("FEDCOMPRESS_CACHE"):
        return Path(own_cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedcompress"


def resolve_model(name: str, base: Path, revision: str = "", *, field: str = "model.path") -> Path:
    """Find the folder of a model that is named by a folder, a GGUF file, or an id of the Hugging Face hub.

    A GGUF file is converted once, to float32 safetensors in ``cache_folder``. A hub id is looked up in the hub's
    cache, and downloaded if it is not there and the machine may.

    Args:
        name: a path, relative to ``base``, or a hub id, ``organisation/name``.
        base: the folder that relative paths start from.
        revision: branch, tag or commit of a hub id; empty for the main branch.
        field: what errors call the model.

    Returns:
        A folder with config.json and weights.

    Raises:
        ConfigError: there is no such model.
    """
    path = base / name
    if path.is_file() and path.suffix == ".gguf":
        return convert_gguf(path)
    if (path / "config.json").is_file():
        return path
    gguf_files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(gguf_files) == 1:
        return convert_gguf(gguf_files[0])
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/")):
        rule = "must be a folder with config.json and weights, one GGUF file, or a hub id as organisation/name"
        raise ConfigError(field, name, rule)
    return _download(name, revision, field)


def _download(name: str, revision: str, field: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ConfigError(
            field, name, f"is neither a folder nor a model of the hub that can be had: {error}"
        ) from error


def convert_gguf(file: Path) -> Path:
    """Convert a GGUF file to a folder of float32 safetensors, once; the folder is named by the file's content.

    Raises:
        MissingPackageError: the package gguf is absent.
        ConfigError: the file cannot be read.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder() / "gguf" / digest[:32]
    if (folder / "config.json").is_file():
        return folder
    try:
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise MissingPackageError(f"package {error.name}: is absent: pip install 'fedcompress[gguf]'") from error
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        has_tokenizer_files = any(
            (file.parent / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
        )
        tokenizer_source = {} if has_tokenizer_files else {"gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **tokenizer_source)
    except (OSError, ValueError, KeyError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ConfigError("model.path", file, f"must be a GGUF file that transformers reads: {error}") from error
    model.config.quantization_config = None
    del model.config.quantization_config
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / SOURCE).write_text(digest + "\n")
    try:
        temporary.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def tokenizer_digest(folder: Path) -> str:
    """Hash what decides how the tokenizer splits a text: vocabulary, merges and chat template; SHA-256 in hex."""
    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    core = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if isinstance(core, dict):
        core.pop("padding", None)  # both are state: they are as the last call has left them
        core.pop("truncation", None)
    identity = [core, tokenizer.eos_token_id, getattr(tokenizer, "chat_template", None)]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; one without a padding token pads with its end-of-sequence token.

    Raises:
        ConfigError: the folder has no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError("model.path", folder, f"must have a tokenizer: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_base(base: BaseModel, objective: Objective, *, meta: bool = False) -> Module:
    """Build the model that an adapter is put on.

    Args:
        base: what to load, and how.
        objective: what is learnt; it decides the model's class and its head.
        meta: make only the shapes, on the meta device, without reading weights.

    Returns:
        A model of transformers, or our own mean-pooled classifier.

    Raises:
        ConfigError: transformers has no such model for this objective, or cannot load it so.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    from fedcompress.adapters.classifier import build_classifier

    options = _build_load_options(base)
    head_options: dict[str, Any] = {}
    match objective:
        case Classification(head="mean-pool-linear"):
            with torch.device("meta" if meta else "cpu"):
                return build_classifier(base.path, len(objective.labels), None if meta else options)
        case Classification():
            kind = AutoModelForSequenceClassification
            head_options = {"num_labels": len(objective.labels)}
        case CausalLM():
            kind = AutoModelForCausalLM
        case Seq2SeqLM():
            kind = AutoModelForSeq2SeqLM
    try:
        if meta:
            with torch.device("meta"):
                return kind.from_config(AutoConfig.from_pretrained(base.path, **head_options))
        model = kind.from_pretrained(base.path, **head_options, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError("model.path", base.path, f"cannot be loaded for {objective.name}: {error}") from error
    if getattr(model.config, "pad_token_id", None) is None and isinstance(objective, Classification):
        model.config.pad_token_id = load_tokenizer(base.path).pad_token_id
    return model


def _build_load_options(base: BaseModel) -> dict[str, Any]:
    """Build the arguments of ``from_pretrained``."""
    import torch

    options: dict[str, Any] = {"dtype": getattr(torch, base.dtype)}
    if base.attention:
        options["attn_implementation"] = base.attention
    if base.quantization == "none":
        return options
    from transformers import BitsAndBytesConfig

    options_4bit = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": options["dtype"],
    }
    quantization_options = options_4bit if base.quantization == "4bit" else {"load_in_8bit": True}
    return {**options, "quantization_config": BitsAndBytesConfig(**quantization_options)}


def has_weights(folder: Path) -> bool:
    """Return True if a folder has weight files, whose names match ``WEIGHTS``."""
    return any(next(folder.glob(pattern), None) is not None for pattern in WEIGHTS)
