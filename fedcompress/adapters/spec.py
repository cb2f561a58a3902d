"""Parses how a user names an adapter, ``lora(r=16,targets=q_proj+v_proj)``, and builds the PEFT config of it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedcompress.adapters.masks import format_mask_type
from fedcompress.adapters.table import ADAPTERS, REFUSED, AdapterRow
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM
from fedcompress.errors import ConfigError, one_of

DENSITY = 0.01  # share of all weights that a mask has where neither density nor r is given
INIT_OPTIONS = ("rho", "tau", "whiten", "corda_method")  # settings of EVA and CorDA, which are no fields of PEFT's
_CALL = re.compile(r"([a-z][a-z0-9-]*)\s*(?:\(([^()]*)\))?")
_SHORT = {"targets": "target_modules", "save": "modules_to_save"}  # short keys -> fields of PEFT's config
_PATTERNS = ("rank_pattern", "alpha_pattern")  # fields whose values are numbers by parts of names
# Fields whose values are lists.
_LISTS = (
    "target_modules",
    "target_parameters",
    "modules_to_save",
    "feedforward_modules",
    "exclude_modules",
    "token_indices",
    "trainable_token_indices",
    "layers_to_transform",
)
_NUMBERS = ("token_indices", "trainable_token_indices", "layers_to_transform")  # fields of lists of whole numbers


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """An adapter spec is a row of the table with the values that a user gave it."""

    name: str  # of the row
    settings: Mapping[str, Any]  # fields of PEFT's config, and those that the row has of its own
    freeze: tuple[str, ...]  # parts of names; a parameter whose name has one of them is not trained
    density: float = 0.0  # share of all weights that a mask has, from which its r is computed; 0 if r is given

    @property
    def row(self) -> AdapterRow:
        """Return the row in the table of adapters."""
        return ADAPTERS[self.name]

    @property
    def init(self) -> str:
        """Name the initialization that ``data_init`` makes: ``eva``, ``corda`` or ``loftq``; empty if PEFT makes it."""
        init = str(self.settings.get("init_lora_weights", ""))
        return init if init in ("eva", "corda", "loftq") else ""

    @property
    def init_options(self) -> dict[str, Any]:
        """Return the settings of that initialization."""
        return {k: v for k, v in self.settings.items() if k in INIT_OPTIONS}

    def config(self, objective: Objective) -> dict[str, Any]:
        """Build PEFT's config as the JSON of an ``adapter_config.json``.

        Args:
            objective: what is learnt; it decides PEFT's task type and which modules are saved whole.

        Raises:
            ConfigError: PEFT's config has no such field, or refuses a value.
        """
        from peft import PeftConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        config_class = PEFT_TYPE_TO_CONFIG_MAPPING[self.row.peft]
        known = {f.name for f in dataclasses.fields(config_class) if f.init}
        settings = {**_settings_for_objective(self.row.peft, objective, known), **self.settings}
        if self.init:
            settings = {k: v for k, v in settings.items() if k not in INIT_OPTIONS} | {"init_lora_weights": True}
        if self.name == "mask":
            mask_type = format_mask_type(str(settings.pop("kind")), int(settings.pop("rank")))
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"adapter.{self.name}", unknown[0], f"unknown key: {one_of(sorted(known), unknown[0])}")
        if self.row.peft in ("LORA", "ADALORA"):
            settings.setdefault("lora_alpha", 2 * settings.get("r", settings.get("init_r", 8)))
        try:
            peft_config = PeftConfig.from_peft_type(peft_type=self.row.peft, **settings)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"adapter.{self.name}", dict(self.settings), f"is refused by PEFT: {error}") from error
        config: dict[str, Any] = json.loads(json.dumps(peft_config.to_dict(), default=_to_json, sort_keys=True))
        config |= {
            key: dict(self.settings[key]) for key in _PATTERNS if key in self.settings
        }  # PEFT takes the first match
        return {**config, "mask_type": mask_type} if self.name == "mask" else config


def _to_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else dataclasses.asdict(value)


def _settings_for_objective(peft: str, objective: Objective, known: set[str]) -> dict[str, Any]:
    """Return the fields that follow from what is learnt, as far as PEFT's config of this type knows them."""
    settings: dict[str, Any] = {}
    if "target_modules" in known and peft not in ("LN_TUNING", "TRAINABLE_TOKENS"):
        settings["target_modules"] = "all-linear"
    match objective:
        case Classification(head="mean-pool-linear"):
            if "modules_to_save" in known:
                settings["modules_to_save"] = ["classifier"]
            if "feedforward_modules" in known:
                settings["feedforward_modules"] = []
        case Classification():
            settings["task_type"] = "SEQ_CLS"
        case CausalLM():
            settings["task_type"] = "CAUSAL_LM"
        case Seq2SeqLM():
            settings["task_type"] = "SEQ_2_SEQ_LM"
    return settings


def parse_adapter(text: str, field: str = "adapter") -> AdapterSpec:
    """Parse how a user names an adapter: ``name`` or ``name(key=value,...)``.

    Keys are the fields of PEFT's config; ``targets`` is short for target_modules, ``save`` for modules_to_save, and
    ``freeze`` has parts of names of what is not trained. The values of a list are joined by ``+``, and so are those
    of ``rank_pattern`` and ``alpha_pattern``, as in ``q_proj:16+v_proj:4``. Whether PEFT knows a key is checked by
    ``AdapterSpec.config``.

    Args:
        text: the call.
        field: what errors call it.

    Raises:
        ConfigError: the name is unknown or refused, or the text is no such call; lists the choices.
    """
    match = _CALL.fullmatch(text.strip())
    name = match.group(1) if match else ""
    if name in REFUSED:
        raise ConfigError(field, name, f"is not averaged: {REFUSED[name]}")
    if match is None or name not in ADAPTERS:
        rule = f"must be name or name(key=value,...); name {one_of([*ADAPTERS, *REFUSED], name or text)}"
        raise ConfigError(field, repr(text.strip()), rule)
    settings: dict[str, Any] = dict(ADAPTERS[name].defaults)
    seen: set[str] = set()
    arguments = match.group(2) or ""
    for item in arguments.split(",") if arguments.strip() else []:
        key, equals, value = (s.strip() for s in item.partition("="))
        key = _SHORT.get(key, key)
        if not equals or not key or key in seen:
            raise ConfigError(f"{field}.{name}", item.strip(), "must be key=value, once each")
        seen.add(key)
        settings[key] = _parse_pattern(field, key, value) if key in _PATTERNS else _parse_value(key, value)
    freeze = tuple(part for part in str(settings.pop("freeze", "")).split("+") if part)
    density = 0
    if name == "mask":
        density = settings.pop("density", 0 if "r" in settings else DENSITY)
    if name == "mask" and density and "r" in settings:
        raise ConfigError(f"{field}.mask.density", density, "must not be given together with r")
    if not isinstance(density, int | float) or not 0 <= density <= 1:
        raise ConfigError(f"{field}.mask.density", density, "must be above 0, at most 1")
    return AdapterSpec(name=name, settings=settings, freeze=freeze, density=float(density))


def _parse_pattern(field: str, key: str, text: str) -> dict[str, int]:
    """Parse numbers by parts of names: ``q_proj:16+down_proj:4``."""
    numbers = {}
    for item in text.split("+"):
        name, colon, number = item.partition(":")
        if not colon or not name or not number.isdigit():
            raise ConfigError(f"{field}.{key}", text, "must be name:number, joined by +")
        numbers[name] = int(number)
    return numbers


def _parse_value(key: str, text: str) -> Any:
    """Parse a truth value, a list, a number or, if it is none of these, text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text == "None":
        return None
    if key in _LISTS and text != "all-linear":
        parts = [p for p in text.split("+") if p]
        return [int(p) for p in parts] if key in _NUMBERS and all(p.isdigit() for p in parts) else parts
    for number_type in (int, float):
        try:
            return number_type(text)
        except ValueError:
            continue
    return text
