"""How an adapter is named, ``lora(r=16,targets=q_proj+v_proj)``, and the PEFT config that comes of it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedcompress.adapters.masks import mask_type
from fedcompress.adapters.table import ADAPTERS, REFUSED, AdapterRow
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM
from fedcompress.errors import ConfigError

DENSITY = 0.01  # of a mask
INIT_OPTIONS = ("rho", "tau", "whiten", "corda_method")
_CALL = re.compile(r"([a-z][a-z0-9-]*)\s*(?:\(([^()]*)\))?")
_SHORT = {"targets": "target_modules", "save": "modules_to_save"}
_PATTERNS = ("rank_pattern", "alpha_pattern")
_LISTS = ("target_modules", "modules_to_save", "feedforward_modules", "exclude_modules", "token_indices")


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """A row with a user's values."""

    name: str
    settings: Mapping[str, Any]  # fields of PEFT's config
    freeze: tuple[str, ...]  # parts of names of what is not trained
    density: float = 0.0  # of a mask, from which its r is computed

    @property
    def row(self) -> AdapterRow:
        """Its row in the table."""
        return ADAPTERS[self.name]

    @property
    def init(self) -> str:
        """How the first factors of LoRA are found, where that is not PEFT's part when it attaches them."""
        init = str(self.settings.get("init_lora_weights", ""))
        return init if init in ("eva", "corda", "loftq") else ""

    @property
    def init_options(self) -> dict[str, Any]:
        """Settings of that."""
        return {k: v for k, v in self.settings.items() if k in INIT_OPTIONS}

    def config(self, objective: Objective) -> dict[str, Any]:
        """PEFT's config as the JSON of an ``adapter_config.json``.

        Raises:
            ConfigError: PEFT's config has no such field, or refuses a value.
        """
        from peft import PeftConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kind = PEFT_TYPE_TO_CONFIG_MAPPING[self.row.peft]
        known = {f.name for f in dataclasses.fields(kind) if f.init}
        settings = {**_for_objective(self.row.peft, objective, known), **self.settings}
        if self.init:
            settings = {k: v for k, v in settings.items() if k not in INIT_OPTIONS} | {"init_lora_weights": True}
        if self.name == "mask":
            named = mask_type(str(settings.pop("kind")), int(settings.pop("rank")))
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"adapter.{self.name}", unknown[0], f"unknown key: must be one of {sorted(known)}")
        if self.row.peft in ("LORA", "ADALORA"):
            settings.setdefault("lora_alpha", 2 * settings.get("r", settings.get("init_r", 8)))
        try:
            made = PeftConfig.from_peft_type(peft_type=self.row.peft, **settings)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"adapter.{self.name}", dict(self.settings), f"is refused by PEFT: {error}") from error
        config: dict[str, Any] = json.loads(json.dumps(made.to_dict(), default=_plain, sort_keys=True))
        return {**config, "mask_type": named} if self.name == "mask" else config


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else dataclasses.asdict(value)


def _for_objective(peft: str, objective: Objective, known: set[str]) -> dict[str, Any]:
    """Fields that follow from what is learnt."""
    out: dict[str, Any] = {}
    if "target_modules" in known and peft not in ("LN_TUNING", "TRAINABLE_TOKENS"):
        out["target_modules"] = "all-linear"
    match objective:
        case Classification(head="mean-pool-linear"):
            out |= {"modules_to_save": ["classifier"]} if "modules_to_save" in known else {}
            out |= {"feedforward_modules": []} if "feedforward_modules" in known else {}
        case Classification():
            out["task_type"] = "SEQ_CLS"
        case CausalLM():
            out["task_type"] = "CAUSAL_LM"
        case Seq2SeqLM():
            out["task_type"] = "SEQ_2_SEQ_LM"
    return out


def parse_adapter(text: str, field: str = "adapter") -> AdapterSpec:
    """Parse ``name`` or ``name(key=value,...)``.

    Keys are the fields of PEFT's config; ``targets`` is short for target_modules, ``save`` for modules_to_save, and
    ``freeze`` names parts that are not trained. Values of a list are joined by ``+``,
    and so are those of ``rank_pattern`` and ``alpha_pattern``, as ``q_proj:16+v_proj:4``.

    Raises:
        ConfigError: unknown name, or not such a call; lists the choices.
    """
    match = _CALL.fullmatch(text.strip())
    name = match.group(1) if match else ""
    if name in REFUSED:
        raise ConfigError(field, name, f"is not averaged: {REFUSED[name]}")
    if match is None or name not in ADAPTERS:
        raise ConfigError(field, repr(text.strip()), f"must be name or name(key=value,...), name of {list(ADAPTERS)}")
    settings: dict[str, Any] = dict(ADAPTERS[name].defaults)
    given: set[str] = set()
    for item in (match.group(2) or "").split(",") if (match.group(2) or "").strip() else []:
        key, equals, value = (s.strip() for s in item.partition("="))
        key = _SHORT.get(key, key)
        if not equals or not key or key in given:
            raise ConfigError(f"{field}.{name}", item.strip(), "must be key=value, once each")
        given.add(key)
        settings[key] = _pattern(field, key, value) if key in _PATTERNS else _value(key, value)
    freeze = tuple(part for part in str(settings.pop("freeze", "")).split("+") if part)
    density = settings.pop("density", 0 if "r" in settings else DENSITY) if name == "mask" else 0
    if name == "mask" and density and "r" in settings:
        raise ConfigError(f"{field}.mask.density", density, "must not be given together with r")
    if not isinstance(density, int | float) or not 0 <= density <= 1:
        raise ConfigError(f"{field}.mask.density", density, "must be above 0, at most 1")
    return AdapterSpec(name=name, settings=settings, freeze=freeze, density=float(density))


def _pattern(field: str, key: str, text: str) -> dict[str, int]:
    """Numbers by parts of names: ``q_proj:16+down_proj:4``."""
    out = {}
    for item in text.split("+"):
        name, colon, number = item.partition(":")
        if not colon or not name or not number.isdigit():
            raise ConfigError(f"{field}.{key}", text, "must be name:number, joined by +")
        out[name] = int(number)
    return out


def _value(key: str, text: str) -> Any:
    """A number, a truth value, a list or text."""
    if text in ("true", "false"):
        return text == "true"
    if key in _LISTS and text != "all-linear":
        parts = [p for p in text.split("+") if p]
        return [int(p) for p in parts] if key == "token_indices" and all(p.isdigit() for p in parts) else parts
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
