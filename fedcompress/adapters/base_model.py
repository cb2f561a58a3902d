"""The frozen base model: where it is, in what precision it is loaded, and what it is loaded as."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.adapters.fingerprint import SOURCE, WEIGHTS
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM
from fedcompress.errors import ConfigError, MissingPackageError

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "8bit", "4bit")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model", "chat_template*")


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model on this machine.

    Args:
        path: a folder with config.json and safetensors or GGUF weights.
        dtype: of the weights that are not quantised.
        quantization: ``4bit`` is NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314,
            section 3), ``8bit`` is LLM.int8 (arXiv:2208.07339); both by bitsandbytes.
        attention: implementation in transformers.
        gradient_checkpointing: compute activations again in the backward pass.
        compile: pass the model through ``torch.compile``.
    """

    path: Path
    dtype: str = "float32"
    quantization: str = "none"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("dtype", DTYPES), ("quantization", QUANTIZATIONS), ("attention", ATTENTIONS)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"model.{name}", getattr(self, name), f"must be one of {list(choices)}")
        if not (self.path / "config.json").is_file() and not list(self.path.glob("*.gguf")):
            raise ConfigError("model.path", self.path, "must be a folder with config.json and weights, or a GGUF file")


def cache_folder() -> Path:
    """Where converted models are kept: ``FEDCOMPRESS_CACHE``, or ``fedcompress`` in the user's cache."""
    named = os.environ.get("FEDCOMPRESS_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedcompress"


def resolve_model(name: str, base: Path, revision: str = "", *, field: str = "model.path") -> Path:
    """Folder of a model that is a folder, a GGUF file, or a hub id.

    A GGUF file is widened once, to safetensors in ``cache_folder``. A hub id is looked up in the hub's cache,
    and downloaded if it is not there and the machine may.

    Args:
        name: path, relative to ``base``, or hub id.
        base: what relative paths start from.
        revision: branch, tag or commit, of a hub id.
        field: what errors name.

    Raises:
        ConfigError: there is no such model.
    """
    path = base / name
    if path.is_file() and path.suffix == ".gguf":
        return convert_gguf(path)
    if (path / "config.json").is_file():
        return path
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(found) == 1:
        return convert_gguf(found[0])
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/")):
        rule = "must be a folder with config.json and weights, one GGUF file, or a hub id as organisation/name"
        raise ConfigError(field, name, rule)
    return _from_hub(name, revision, field)


def _from_hub(name: str, revision: str, field: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ConfigError(
            field, name, f"is neither a folder nor a model of the hub that can be had: {error}"
        ) from error


def convert_gguf(file: Path) -> Path:
    """A GGUF file as a folder of safetensors in float32, made once; named by the file's content.

    Raises:
        MissingPackageError: gguf is absent.
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
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        plain = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=plain
        )
        beside = any((file.parent / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        names = {} if beside else {"gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **names)
    except (OSError, ValueError, KeyError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ConfigError("model.path", file, f"must be a GGUF file that transformers reads: {error}") from error
    model.config.quantization_config = None
    del model.config.quantization_config
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / SOURCE).write_text(digest + "\n")
    try:
        part.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(part, ignore_errors=True)
    return folder


def tokenizer_digest(folder: Path) -> str:
    """SHA-256, hex, of what the tokenizer makes of words: its vocabulary, merges and template."""
    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    core = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if isinstance(core, dict):
        core.pop("padding", None)  # set by whoever called it last
        core.pop("truncation", None)
    facts = [core, tokenizer.eos_token_id, getattr(tokenizer, "chat_template", None)]
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer, with a token to pad with.

    Raises:
        ConfigError: the folder has none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError("model.path", folder, f"must have a tokenizer: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_base(base: BaseModel, objective: Objective, *, meta: bool = False) -> Any:
    """The model that an adapter is put on; with ``meta`` only its shapes, without reading weights.

    Raises:
        ConfigError: transformers has no such model for this objective, or cannot load it so.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    from fedcompress.adapters.classifier import build_classifier

    options = _options(base)
    extra: dict[str, Any] = {}
    match objective:
        case Classification(head="mean-pool-linear"):
            with torch.device("meta" if meta else "cpu"):
                return build_classifier(base.path, len(objective.labels), None if meta else options)
        case Classification():
            kind, extra = AutoModelForSequenceClassification, {"num_labels": len(objective.labels)}
        case CausalLM():
            kind = AutoModelForCausalLM
        case Seq2SeqLM():
            kind = AutoModelForSeq2SeqLM
    try:
        if meta:
            with torch.device("meta"):
                return kind.from_config(AutoConfig.from_pretrained(base.path, **extra))
        model = kind.from_pretrained(base.path, **extra, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError("model.path", base.path, f"cannot be loaded for {objective.name}: {error}") from error
    if getattr(model.config, "pad_token_id", None) is None and isinstance(objective, Classification):
        model.config.pad_token_id = load_tokenizer(base.path).pad_token_id
    return model


def _options(base: BaseModel) -> dict[str, Any]:
    """Arguments of ``from_pretrained``."""
    import torch

    options: dict[str, Any] = {"dtype": getattr(torch, base.dtype), "attn_implementation": base.attention}
    if base.quantization == "none":
        return options
    from transformers import BitsAndBytesConfig

    four = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": options["dtype"],
    }
    chosen = four if base.quantization == "4bit" else {"load_in_8bit": True}
    return {**options, "quantization_config": BitsAndBytesConfig(**chosen)}


def has_weights(folder: Path) -> bool:
    """Whether there are weight files, beside the config."""
    return any(next(folder.glob(pattern), None) is not None for pattern in WEIGHTS)
