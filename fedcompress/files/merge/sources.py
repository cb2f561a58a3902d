"""The adapters of sites are opened by their headers here, compared, and read tensor by tensor."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.folder import CONFIG_FILE
from fedcompress.adapters.groups import PREFIX
from fedcompress.adapters.safetensors_io import TensorSource, open_source
from fedcompress.adapters.scaling import has_plain_start, match_pattern
from fedcompress.chunks import TensorSlice
from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.files.merge.experts import find_parameters, select_b
from fedcompress.files.merge.peft_types import REFUSED, TYPES, TypeRow
from fedcompress.files.merge.sparse_indices import with_float_indices
from fedcompress.types import Array, TensorSpec

_COPY = re.compile(r"(-unsloth)?-bnb-4bit$")  # endings of names of copies in 4 bits
FCU = ".fcu"  # suffix of files that hold an encoded adapter
SPARSE = ("SHIRA", "SUPERTUNING")  # PEFT types that store the indices of their values
_FACTOR = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?")
# Options of LoRA whose change is not scaling times B A, or is not that on every input.
_NOT_PLAIN = {
    "arrow_config": "has a router",
    "kasa_config": "has a diagonal between the factors",
    "monteclora_config": "has random factors",
    "use_bdlora": "has factors in blocks",
    "use_qalora": "has inputs that are pooled",
}
# Fields that say which base model an adapter is for.
_BASES = ("base_model_name_or_path", "revision")
# Options of LoRA that must be equal at all sites.
_EQUAL = ("alora_invocation_tokens", "bias", "layer_replication", "trainable_token_indices", "use_dora")
# What may differ between sites of a type that is averaged entry by entry.
_FREE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config")


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Says where the two factors of a module are, at one site, and what their product is multiplied with."""

    a: TensorSpec  # (rank, columns), (rank, columns, *kernel) or (experts * rank, columns)
    b: TensorSpec  # (rows, rank), (rows, rank, 1, ...) or (rows, rank * experts)
    scaling: float  # alpha / rank, or alpha / sqrt(rank) with rsLoRA
    module: str  # the module's name in the file, which its experts share
    keys: tuple[str, ...]  # its name in patterns of the config; several for a wrapper of which it is not known
    expert: int = 0  # which of the experts in A and B
    experts: int = 1  # number of experts in A and B

    @property
    def rank(self) -> int:
        """Return the rank of the module, or of one expert of it."""
        return self.a.shape[0] // self.experts

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of the product, (rows, columns), with kernels flattened."""
        return self.b.shape[0], math.prod(self.a.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site is one adapter, of which nothing but the header is in memory."""

    path: Path  # as the user gave it
    source: TensorSource  # reads the tensors
    config: Mapping[str, Any]  # adapter_config.json
    modules: Mapping[str, Factors]  # LoRA modules by their name in the file; with [3] behind it for an expert
    held: dict[tuple[str, int, int | None], Array] = field(default_factory=dict, repr=False)  # rows of one stacked B

    def read(self, spec: TensorSpec, start: int = 0, stop: int | None = None) -> Array:
        """Read rows of a tensor.

        Args:
            spec: the tensor.
            start: the first row.
            stop: the row behind the last; the end of the tensor if left out. A scalar is read whole.

        Returns:
            Shape (stop - start, ...), float32.

        Raises:
            NonFiniteError: a value is NaN or infinite; names site and tensor.
        """
        if not spec.shape:
            values = self.source.read(TensorSlice(spec=spec))
        else:
            end = spec.shape[0] if stop is None else stop
            part = TensorSpec(name=spec.name, shape=(end - start, *spec.shape[1:]), dtype=spec.dtype)
            values = self.source.read(TensorSlice(spec=part, start=start, total=spec.shape[0]))
        if not np.isfinite(values).all():
            raise NonFiniteError(f"{self.path}: {spec.name}: contains NaN or infinity: all values must be finite")
        return values

    def read_a(self, factors: Factors, start: int = 0, stop: int | None = None) -> Array:
        """Read rows of A of a module or expert.

        Args:
            factors: where they are.
            start: the first row.
            stop: the row behind the last; all rows of the rank if left out.

        Returns:
            Shape (stop - start, ...), float32.
        """
        first = factors.expert * factors.rank
        return self.read(factors.a, first + start, first + (factors.rank if stop is None else stop))

    def read_b(self, factors: Factors, start: int = 0, stop: int | None = None) -> Array:
        """Read rows of B of a module or expert.

        What was read last of several experts is held, since the next one lies between its entries.

        Args:
            factors: where they are.
            start: the first row.
            stop: the row behind the last; all rows if left out.

        Returns:
            Shape (stop - start, rank, ...), float32.
        """
        if factors.experts == 1:
            return self.read(factors.b, start, stop)
        part = (factors.b.name, start, stop)
        stacked = self.held.get(part)
        if stacked is None:
            stacked = self.read(factors.b, start, stop)
            self.held.clear()
            self.held[part] = stacked
        return select_b(stacked, factors.expert, factors.experts)

    @property
    def others(self) -> list[TensorSpec]:
        """Return the tensors that are no factor."""
        factors = {t.name for f in self.modules.values() for t in (f.a, f.b)}
        return [t for t in self.source.layout.tensors if t.name not in factors]


def open_sites(paths: Sequence[Path], base: Path | None, scratch: Path) -> list[Site]:
    """Open PEFT folders, and .fcu files after decoding them into a scratch folder.

    Args:
        paths: folders and .fcu files.
        base: what .fcu files were encoded against, if they were.
        scratch: an empty folder for what is decoded.

    Returns:
        One site for each path, in order.

    Raises:
        ConfigError: a path is no adapter, or one of a kind that cannot be merged; names it.
        StateError: a file does not parse.
        WireError: a .fcu file is malformed.
    """
    if not paths:
        raise ConfigError("PATH", "none", "at least one PEFT folder or .fcu file must be given")
    files = [path for path in paths if path.suffix == FCU]
    if base is not None and not files:
        raise ConfigError("--base", base, "is for .fcu files: there is none")
    return [_open(path, _folder(path, base, scratch / str(i))) for i, path in enumerate(paths)]


def _folder(path: Path, base: Path | None, scratch: Path) -> Path:
    from fedcompress.files.container import open_container
    from fedcompress.files.decode import decode_file

    if path.suffix != FCU or path.is_dir():
        return with_float_indices(path, scratch) if _is_sparse(path) else path
    container = open_container(path)
    if container.config is None:
        raise ConfigError("PATH", path, "must hold an adapter: it has tensors without a config")
    decode_file(path, scratch, base=base if container.has_base else None)
    return scratch


def _is_sparse(folder: Path) -> bool:
    """Return whether a folder may have integer tensors; a config that is broken is reported when it is opened."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("peft_type") in SPARSE


def _open(path: Path, folder: Path) -> Site:
    if not folder.is_dir():
        raise ConfigError("PATH", path, "must be a PEFT folder or an .fcu file")
    source = open_source(folder, prefixed=True)
    config = source.config or {}
    row = find_type(path, config)
    if row.merge == REFUSED:
        raise ConfigError(f"{path}: peft_type", config["peft_type"], f"cannot be merged: it {row.why}")
    source.check_gathered(path)
    modules: dict[str, Factors] = {}
    if config["peft_type"] == "LORA":
        _check_plain(path, config)
        modules = _find_modules(path, source, config)
    return Site(path=path, source=source, config=config, modules=modules)


def find_type(path: Path, config: Mapping[str, Any]) -> TypeRow:
    """Find the row of a config's PEFT type, or raise ``ConfigError`` with ``path`` if the table has none."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise ConfigError(f"{path}: peft_type", kind, f"one of {list(TYPES)}")
    return TYPES[kind]


def _check_plain(path: Path, config: Mapping[str, Any]) -> None:
    if not has_plain_start(config):
        rule = "changes the base model: merge what save_pretrained(path_initial_model_for_weight_conversion=...) writes"
        raise ConfigError(f"{path}: init_lora_weights", config["init_lora_weights"], rule)
    for key, why in _NOT_PLAIN.items():
        if config.get(key):
            raise ConfigError(f"{path}: {key}", config[key], f"cannot be merged: it {why}")


def _find_modules(path: Path, source: TensorSource, config: Mapping[str, Any]) -> dict[str, Factors]:
    factors: dict[str, dict[str, TensorSpec]] = {}  # by module: A and B
    for spec in source.layout.tensors:
        if match := _FACTOR.fullmatch(spec.name):
            factors.setdefault(match.group(1), {})[match.group(2)] = spec
        elif ".lora_" in spec.name and not is_magnitude(spec.name) and not is_bias(spec.name):
            raise ConfigError(f"{path}: tensor", spec.name, "is no tensor of plain LoRA or DoRA")
    wrapped = find_parameters(config, [name.removeprefix(PREFIX) for name in factors])
    modules: dict[str, Factors] = {}
    for name, pair in sorted(factors.items()):
        for letter in "AB":
            if letter not in pair:
                other = next(iter(pair.values())).name
                raise ConfigError(f"{path}: {name}", f"no lora_{letter}", f"must come with {other}")
        modules |= _locate_factors(path, name, pair["A"], pair["B"], config, wrapped.get(name.removeprefix(PREFIX)))
    return modules


def _locate_factors(
    path: Path, name: str, a: TensorSpec, b: TensorSpec, config: Mapping[str, Any], wrapped: tuple[str, ...] | None
) -> dict[str, Factors]:
    """Find the factors of a module, or of each expert of a parameter, which has the names ``wrapped``."""
    if len(a.shape) < 2 or len(a.shape) != len(b.shape) or b.shape[1] != a.shape[0] or set(b.shape[2:]) - {1}:
        raise ConfigError(f"{path}: {name}", f"A {a.shape}, B {b.shape}", "must multiply: (r, columns) and (rows, r)")
    keys = wrapped or (name.removeprefix(PREFIX),)
    rank, alpha = _find_rank(path, name, config, keys)
    experts = a.shape[0] // rank if wrapped and isinstance(rank, int) and rank > 0 else 1
    if not rank or rank * experts != a.shape[0] or not experts:
        also = ", times a number of experts" if wrapped else ""
        raise ConfigError(f"{path}: {name}", f"A {a.shape}", f"must have the rank of {CONFIG_FILE}: {rank}{also}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ConfigError(f"{path}: lora_alpha", alpha, "must be a finite number")
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    whole = Factors(a=a, b=b, scaling=scaling, module=name, keys=keys, experts=experts)
    if experts == 1:
        return {name: whole}
    return {f"{name}[{i}]": replace(whole, expert=i) for i in range(experts)}


def _find_rank(path: Path, name: str, config: Mapping[str, Any], keys: Sequence[str]) -> tuple[Any, Any]:
    """Return rank and alpha of a module by its names in patterns, or raise if these have different ones."""
    found = [
        (
            match_pattern(path, config, "rank_pattern", key, config.get("r")),
            match_pattern(path, config, "alpha_pattern", key, config.get("lora_alpha")),
        )
        for key in keys
    ]
    if any(pair != found[0] for pair in found):
        rule = "must be the same for all of them: the file does not say which one this is"
        raise ConfigError(f"{path}: {name}", f"rank and alpha of {', '.join(keys)}", rule)
    return found[0]


def is_magnitude(name: str) -> bool:
    """Return whether a tensor is a magnitude of DoRA."""
    return ".lora_magnitude_vector" in name


def is_bias(name: str) -> bool:
    """Return whether a tensor is the bias of a B, which is scaled like B."""
    return name.endswith(".lora_B.bias")


def check_together(sites: Sequence[Site], other_bases: bool) -> None:
    """Raise unless all sites can be merged with the first one.

    Args:
        sites: the adapters.
        other_bases: accept different names and revisions of the base model.

    Raises:
        ConfigError: base model, revision, type, a setting or a shape differs; names site and field.
    """
    first = sites[0]
    for site in sites[1:]:
        keys: list[str] = ["peft_type"]
        if not other_bases:
            keys += _BASES
        if site.config["peft_type"] == first.config["peft_type"]:
            together = {*first.config, *site.config}
            keys += _EQUAL if site.config["peft_type"] == "LORA" else sorted(together - {*_FREE})
        for key in keys:
            ours, theirs = (_normalize_option(key, s.config.get(key)) for s in (first, site))
            if ours != theirs:
                rule = f"must be as in {first.path}: {first.config.get(key)}"
                if key in _BASES:
                    rule += "; give --other-bases if both are one model in different places"
                raise ConfigError(f"{site.path}: {key}", site.config.get(key), rule)
    located: dict[str, tuple[Site, Factors]] = {}  # by name in the file: the first site that has it
    for site in sites:
        for factors in site.modules.values():
            _check_shapes(factors, site, *located.setdefault(factors.module, (site, factors)))
    _check_others(sites)


def normalize_base(name: str) -> str | None:
    """Return the name of a base model without what says nothing of the model.

    That is slashes that are doubled or at the end, ``./`` at the beginning, and the endings of copies in 4 bits
    (``-bnb-4bit``), whose adapters fit the model that was quantized.
    """
    plain = posixpath.normpath(name.strip()) if name.strip() else ""
    return _COPY.sub("", plain) or None


def _normalize_option(key: str, value: Any) -> Any:
    if key == "revision" and value in (None, "", "main"):
        return None
    if key == "base_model_name_or_path" and isinstance(value, str):
        return normalize_base(value)
    if key == "bias" and value is None:
        return "none"
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return sorted(value) or None
    return value or None


def _check_shapes(factors: Factors, site: Site, other: Site, known: Factors) -> None:
    name = factors.module
    if factors.keys != known.keys:
        rule = f"must be of the same parameter as in {other.path}, {', '.join(known.keys)}: set target_parameters alike"
        raise ConfigError(f"{site.path}: {name}", ", ".join(factors.keys), rule)
    if (factors.a.shape[1:], factors.b.shape[0], factors.experts, factors.a.name, factors.b.name) != (
        known.a.shape[1:],
        known.b.shape[0],
        known.experts,
        known.a.name,
        known.b.name,
    ):
        rule = f"must be as in {other.path} but for the rank: {known.a.shape}, {known.b.shape}"
        raise ConfigError(f"{site.path}: {name}", f"{factors.a.shape}, {factors.b.shape}", rule)


def _check_others(sites: Sequence[Site]) -> None:
    """Raise unless tensors that are no factor are in all sites, with one shape; only a bias of B may be missing."""
    by_site = [{t.name: t for t in s.others} for s in sites]
    for name in sorted({n for tensors in by_site for n in tensors}):
        owner = next(i for i, tensors in enumerate(by_site) if name in tensors)
        shape = by_site[owner][name].shape
        for site, tensors in zip(sites, by_site, strict=True):
            if name not in tensors and not is_bias(name):
                rule = f"must be in all adapters or in none: it is in {sites[owner].path}"
                raise ConfigError(f"{site.path}: {name}", "missing", rule)
            if name in tensors and tensors[name].shape != shape:
                rule = f"must be as in {sites[owner].path}: {shape}"
                raise ConfigError(f"{site.path}: {name}", tensors[name].shape, rule)
