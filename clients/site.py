"""A site is configured by its site.toml alone; this is the whole file, with every key and its default.

[site]
name = "hospital-north"      # unique in the federation
state_dir = "state"          # relative to this file; residuals and outbox live here

[model]
path = "models/smollm2"      # folder with safetensors or one GGUF file, or a hub id as organisation/name
revision = ""                # of a hub id
dtype = "float32"            # or bfloat16, float16
quantization = "none"        # or 4bit (NF4), 8bit: of the frozen base
attention = ""               # sdpa, eager or flash_attention_2; empty: as transformers chooses for the model
gradient_checkpointing = false
compile = false              # torch.compile

[data]
train = "train.jsonl"        # or .csv, .tsv, .parquet; a folder of save_to_disk, as folder:split if it has splits;
                             # hf:organisation/name:split of the hub; package.module:function, called with "train"
heldout = "heldout.jsonl"    # likewise; absent: heldout_share of train, by a hash of the row
heldout_share = 0.1
text = "text"                # classification: keys of the text and of the class name
label = "label"              # its values are names, or the numbers or truth values of names
prompt = "prompt"            # language models: keys of the prompt and of the completion
completion = "completion"
messages = "messages"        # or of a chat, a list of {"role": ..., "content": ...}
delimiter = ""               # of CSV files: ; or another character; empty: found from the header
streaming = false            # keep tokens in a file in state_dir, not in memory
streaming_above = 1024       # MiB of a source from which that is done anyway; 0: never
packing = false              # language models: join examples to blocks of the run's max-length, for training

[engine]
kind = "deepspeed"           # or accelerate
ranks = 1                    # training processes
zero_stage = 2               # DeepSpeed ZeRO 0 to 3
offload = "none"             # or cpu, nvme: of what ZeRO shards
offload_path = ""            # folder on an NVMe drive
sharding = "none"            # or fsdp2, with kind accelerate
micro_batch = 16             # examples a rank handles at once, halved when memory is short; 0: as many as fit
threads = 1                  # CPU threads a rank
collective_timeout = 3600    # seconds that a rank waits for the others within a step
keep_model = "always"        # between rounds; or pressure: not while under a tenth of the memory is free; or never
nodes = 1                    # machines, each with so many ranks; more than one: `fedcompress site node` on the others
rendezvous = ""              # of several nodes: host:port of node 0, as the others reach it
token = "node.token"         # of several nodes: file with what they know each other by; node 0 makes it
start_timeout = 300          # seconds that a round waits for all ranks to be there

[adapter]
rank = 0                     # LoRA components of a module that this site trains in a round; 0: all

[privacy]
max_update_norm = 0.0        # 0: do not clip

[identity]
key = ""                     # this site's private key, of `fedcompress keys new`: what it sends is signed
coordinator = ""             # the coordinator's public key: nothing else's tasks are taken

[superlink]
address = ""                 # HOST:PORT, if not given to `site up`
root_certificates = ""       # PEM file of the CA that has signed the SuperLink's certificate
node_key = ""                # the SuperNode's private key; a SuperLink takes none without, unless it says otherwise

[link]
mbit = 0                     # a second to the SuperLink, in the slower direction; 0: not known
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from clients.data_sources import make_absolute, parse_source
from clients.network.link_speed import Link
from fedcompress.adapters.base_model import BaseModel, resolve_model
from fedcompress.errors import ConfigError, one_of
from fedcompress.types import NAME_PATTERN

KINDS = ("deepspeed", "accelerate")  # engine.kind
OFFLOADS = ("none", "cpu", "nvme")  # engine.offload
SHARDINGS = ("none", "fsdp2")  # engine.sharding
KEEPS = ("always", "pressure", "never")  # engine.keep_model


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Says how a site computes: engine, processes, memory; each field is the key of that name in ``[engine]``.

    More about a key is in the file at the head of this module.
    """

    kind: str = "deepspeed"
    ranks: int = 1
    zero_stage: int = 2
    offload: str = "none"
    offload_path: str = ""
    sharding: str = "none"
    micro_batch: int = 16
    threads: int = 1
    collective_timeout: int = 3600  # seconds
    keep_model: str = "always"
    nodes: int = 1
    rendezvous: str = ""  # host:port
    token: str = "node.token"  # absolute in a SiteConfig
    start_timeout: int = 300  # seconds

    @property
    def world(self) -> int:
        """Return the number of ranks on all nodes."""
        return self.ranks * self.nodes

    def __post_init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        if not 1 <= self.ranks <= cores:
            raise ConfigError("engine.ranks", self.ranks, f"must be from 1 to {cores}, the cores of this machine")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError("engine.zero_stage", self.zero_stage, "must be 0, 1, 2 or 3")
        for name, choices in (("kind", KINDS), ("offload", OFFLOADS), ("sharding", SHARDINGS), ("keep_model", KEEPS)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"engine.{name}", getattr(self, name), one_of(choices, getattr(self, name)))
        if self.offload != "none" and (self.kind != "deepspeed" or not self.zero_stage):
            raise ConfigError("engine.offload", self.offload, "needs kind deepspeed and a zero_stage from 1 to 3")
        if self.offload == "nvme" and not (self.offload_path and Path(self.offload_path).is_dir()):
            raise ConfigError("engine.offload_path", repr(self.offload_path), "must be a folder on an NVMe drive")
        if self.sharding != "none" and self.kind != "accelerate":
            raise ConfigError("engine.sharding", self.sharding, "is for kind accelerate: DeepSpeed has zero_stage")
        lower_bounds = {"micro_batch": 0, "threads": 1, "collective_timeout": 1, "nodes": 1, "start_timeout": 1}
        for name, least in lower_bounds.items():
            if getattr(self, name) < least:
                raise ConfigError(f"engine.{name}", getattr(self, name), f"must be at least {least}")
        if self.nodes > 1:
            parse_address(self.rendezvous)


def parse_address(rendezvous: str) -> tuple[str, int]:
    """Return host and port of a rendezvous, which is written as ``host:port``, an IPv6 host in brackets.

    Raises:
        ConfigError: it is not written so.
    """
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError("engine.rendezvous", repr(rendezvous), "must be host:port of node 0, with engine.nodes")
    return host.strip("[]"), int(port)


def format_address(host: str, port: int) -> str:
    """Return host and port as gRPC writes them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Says where the site's rows are, and what their fields are called; the section ``[data]``."""

    train: str  # a source, see clients.data_sources; paths are absolute
    heldout: str = ""  # empty: cut from train
    heldout_share: float = 0.1
    text: str = "text"
    label: str = "label"
    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"
    delimiter: str = ""  # of CSV files; empty: found from the header
    streaming: bool = False
    streaming_above: int = 1024  # MiB
    packing: bool = False

    def __post_init__(self) -> None:
        for name in ("train", "heldout"):
            text = getattr(self, name)
            if text or name == "train":
                parse_source(text, name).check()
        if self.streaming_above < 0:
            raise ConfigError("data.streaming_above", self.streaming_above, "must be at least 0")
        if len(self.delimiter) > 1 or self.delimiter in ("\n", "\r", '"'):
            rule = "must be one character, such as ; or \\t, no quote and no line end"
            raise ConfigError("data.delimiter", repr(self.delimiter), rule)
        if not 0 < self.heldout_share < 1:
            raise ConfigError("data.heldout_share", self.heldout_share, "must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Names the key files of a site, the section ``[identity]``.

    Attributes:
        key: the site's private key; None: what it sends is not signed.
        coordinator: the coordinator's public key; None: tasks are not verified.
    """

    key: Path | None = None
    coordinator: Path | None = None

    def __post_init__(self) -> None:
        _check_files("identity", self)


@dataclass(frozen=True, kw_only=True)
class SuperLink:
    """Says how a site reaches the SuperLink where the options of ``site up`` do not; the section ``[superlink]``."""

    address: str = ""
    root_certificates: Path | None = None  # None: those of the system
    node_key: Path | None = None

    def __post_init__(self) -> None:
        _check_files("superlink", self)


def _check_files(section: str, config: Identity | SuperLink) -> None:
    """Raise ``ConfigError`` unless all files that a section names are there."""
    for field_ in fields(config):
        path = getattr(config, field_.name)
        if isinstance(path, Path) and not path.is_file():
            raise ConfigError(f"{section}.{field_.name}", path, "must be an existing file")


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """Holds a checked site.toml; all paths are absolute.

    Attributes:
        name: unique in the federation.
        state_dir: folder of residuals and outbox.
        model: the base model, and how it is loaded.
        data: where the rows are.
        engine: how the site computes.
        max_update_norm: L2 norm that an update is clipped to before it is encoded; 0: it is not clipped.
        rank: LoRA components of a module that are trained in a round; 0: all.
        identity: key files.
        superlink: how the SuperLink is reached.
        link: speed of the link to it.
    """

    name: str
    state_dir: Path
    model: BaseModel
    data: Data
    engine: Engine = field(default_factory=Engine)
    max_update_norm: float = 0.0
    rank: int = 0
    identity: Identity = field(default_factory=Identity)
    superlink: SuperLink = field(default_factory=SuperLink)
    link: Link = field(default_factory=Link)

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise ConfigError("site.name", repr(self.name), f"must match {NAME_PATTERN.pattern}")
        if not self.max_update_norm >= 0:  # NaN is refused too
            raise ConfigError("privacy.max_update_norm", self.max_update_norm, "must be >= 0 (0: do not clip)")
        if self.rank < 0:
            raise ConfigError("adapter.rank", self.rank, "must be at least 0 (0: all)")
        if self.rank and self.engine.sharding != "none":
            raise ConfigError("adapter.rank", self.rank, "must be 0 with engine.sharding, which hides whole gradients")
        if self.model.quantization != "none" and self.engine.kind == "deepspeed" and self.engine.zero_stage == 3:
            raise ConfigError(
                "engine.zero_stage", 3, f"must be below 3 with model.quantization {self.model.quantization}"
            )

    @classmethod
    def load(cls, path: Path) -> SiteConfig:
        """Read and check a site.toml.

        Raises:
            ConfigError: the file is absent or not TOML; an unknown key; a value out of range.
        """
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError("site.toml", path, f"must be a readable TOML file: {error}") from error
        _check_keys(raw, KNOWN)
        base = path.resolve().parent  # relative paths are from there
        for name in ("site.name", "site.state_dir", "model.path", "data.train"):
            section, _, key = name.partition(".")
            if raw.get(section, {}).get(key, "") == "":
                raise ConfigError(name, "nothing", "must be set in site.toml")
        site = raw["site"]
        data = raw["data"]
        model = dict(raw["model"])
        folder = resolve_model(model.pop("path"), base, model.pop("revision", ""))
        sources = {k: make_absolute(data[k], base) for k in ("train", "heldout") if data.get(k)}
        return cls(
            name=site["name"],
            state_dir=base / site["state_dir"],
            model=BaseModel(path=folder, **model),
            data=Data(**{**data, **sources}),
            engine=_engine(raw.get("engine", {}), base),
            rank=raw.get("adapter", {}).get("rank", 0),
            max_update_norm=float(raw.get("privacy", {}).get("max_update_norm", 0.0)),
            identity=Identity(**_files(raw.get("identity", {}), base)),
            superlink=SuperLink(**_files(raw.get("superlink", {}), base)),
            link=Link(**raw.get("link", {})),
        )


def _engine(raw: dict[str, Any], base: Path) -> Engine:
    """Return the engine's section, with the token's path relative to the folder ``base`` made absolute."""
    engine = Engine(**raw)
    return replace(engine, token=str(base / engine.token))


def _files(section: dict[str, str], base: Path) -> dict[str, Any]:
    """Return a section's names of files as absolute paths; what is empty is left out."""
    return {k: v if k == "address" else base / v for k, v in section.items() if v}


def _kinds(config: type, **others: type) -> dict[str, type]:
    """Return the TOML types of a dataclass's fields and of ``others``; paths are written as text."""
    types: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
    return {f.name: types.get(str(f.type), str) for f in fields(config)} | others


# types of all keys, by section and key
KNOWN: dict[str, dict[str, type]] = {
    "site": {"name": str, "state_dir": str},
    "model": _kinds(BaseModel, revision=str),
    "data": _kinds(Data),
    "engine": _kinds(Engine),
    "adapter": {"rank": int},
    "privacy": {"max_update_norm": float},
    "identity": _kinds(Identity),
    "superlink": _kinds(SuperLink),
    "link": _kinds(Link),
}


def _check_keys(raw: dict[str, Any], known: dict[str, dict[str, type]]) -> None:
    """Raise ``ConfigError`` for an unknown section or key, or a value of another type."""
    for section, body in raw.items():
        if section not in known or not isinstance(body, dict):
            raise ConfigError(section, body, f"unknown section: {one_of(known, section)}")
        for key, value in body.items():
            kind = known[section].get(key)
            if kind is None:
                raise ConfigError(f"{section}.{key}", value, f"unknown key: {one_of(known[section], key)}")
            allowed = (int, float) if kind is float else (kind,)
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
                raise ConfigError(f"{section}.{key}", repr(value), f"must be of type {kind.__name__}")
