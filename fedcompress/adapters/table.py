"""The one literal table of adapters, and how one is named: ``lora(r=16,targets=q_proj+v_proj)``."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedcompress.errors import ConfigError
from fedcompress.objective import CausalLM, Classification, Objective, Seq2SeqLM

PRODUCT, LINEAR, NEAR = "product", "linear", "near"
_CALL = re.compile(r"([a-z][a-z0-9-]*)\s*(?:\(([^()]*)\))?")
_SHORT = {"targets": "target_modules", "save": "modules_to_save"}
_LISTS = ("target_modules", "modules_to_save", "feedforward_modules", "exclude_modules", "token_indices")


@dataclass(frozen=True, kw_only=True)
class AdapterRow:
    """One kind of adapter: a PEFT type with some of its fields set.

    Args:
        peft: PEFT's name of the type.
        merge: ``product``: LoRA factors, for rules that merge their products. ``linear``: the weights that result are
            linear in what is trained, so that the mean is exact. ``near``: they are not, and the mean of updates
            from one start differs from the mean of the weights in the second order of the updates.
        paper: where it is from.
        start: ``seed``: the first state is made from the run's seed, without reading the base; ``template``: it is
            made once, by PEFT, and sent.
        defaults: fields of PEFT's config that this row sets; a user may set them otherwise.
        note: what to know.
    """

    peft: str
    merge: str
    paper: str
    start: str = "template"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


ADAPTERS: dict[str, AdapterRow] = {
    "lora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        start="seed",
        paper="Hu et al. 2021 (arXiv:2106.09685)",
    ),
    "rslora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        start="seed",
        defaults={"use_rslora": True},
        paper="Kalajdzievski 2023 (arXiv:2312.03732)",
    ),
    "ffa-lora": AdapterRow(
        peft="LORA",
        merge=LINEAR,
        defaults={"freeze": "lora_A"},
        note="A is made once and sent; only B is trained, so that any mean is exact",
        paper="Sun et al. 2024 (arXiv:2403.12313)",
    ),
    "dora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        defaults={"use_dora": True},
        note="directions as LoRA, magnitudes by their mean; the norm makes it near",
        paper="Liu et al. 2024 (arXiv:2402.09353)",
    ),
    "pissa": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        defaults={"init_lora_weights": "pissa"},
        note="the residual base is rebuilt from the first factors, which are sent; exported at twice the rank",
        paper="Meng et al. 2024 (arXiv:2404.02948)",
    ),
    "olora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        defaults={"init_lora_weights": "olora"},
        note="as pissa",
        paper="Buyukakyuz 2024 (arXiv:2406.01775)",
    ),
    "orthogonal-lora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        defaults={"init_lora_weights": "orthogonal"},
        paper="PEFT, init_lora_weights",
    ),
    "mica": AdapterRow(
        peft="LORA",
        merge=LINEAR,
        defaults={"init_lora_weights": "mica"},
        note="B is frozen",
        paper="PEFT, init_lora_weights",
    ),
    "adalora": AdapterRow(
        peft="ADALORA",
        merge=NEAR,
        defaults={"init_r": 8, "target_r": 8, "total_step": 1},
        note="singular values as a factor of their own; ranks stay as they are given, since sites would not agree",
        paper="Zhang et al. 2023 (arXiv:2303.10512)",
    ),
    "vera": AdapterRow(
        peft="VERA",
        merge=NEAR,
        defaults={"save_projection": False},
        note="exact with freeze=vera_lambda_d",
        paper="Kopiczko et al. 2023 (arXiv:2310.11454)",
    ),
    "randlora": AdapterRow(
        peft="RANDLORA",
        merge=NEAR,
        defaults={"save_projection": False},
        note="exact with freeze=randlora_gamma",
        paper="Albert et al. 2025 (arXiv:2502.00987)",
    ),
    "miss": AdapterRow(
        peft="MISS",
        merge=LINEAR,
        paper="Kang and Yin 2024 (arXiv:2409.15371)",
    ),
    "bone": AdapterRow(
        peft="MISS",
        merge=LINEAR,
        defaults={"init_weights": "bat"},
        paper="Kang and Yin 2024 (arXiv:2409.15371v1)",
    ),
    "ia3": AdapterRow(
        peft="IA3",
        merge=LINEAR,
        paper="Liu et al. 2022 (arXiv:2205.05638)",
    ),
    "loha": AdapterRow(
        peft="LOHA",
        merge=NEAR,
        paper="Hyeon-Woo et al. 2022 (arXiv:2108.06098)",
    ),
    "lokr": AdapterRow(
        peft="LOKR",
        merge=NEAR,
        note="also DiffuseKronA (arXiv:2402.17412)",
        paper="Yeh et al. 2023 (arXiv:2309.14859)",
    ),
    "fourierft": AdapterRow(
        peft="FOURIERFT",
        merge=LINEAR,
        note="frequencies are drawn from random_loc_seed",
        paper="Gao et al. 2024 (arXiv:2405.03003)",
    ),
    "waveft": AdapterRow(
        peft="WAVEFT",
        merge=LINEAR,
        paper="Bilican et al. 2025 (arXiv:2505.12532)",
    ),
    "c3a": AdapterRow(
        peft="C3A",
        merge=LINEAR,
        note="block_size must divide the widths of the modules",
        paper="Chen et al. 2024 (arXiv:2407.19342)",
    ),
    "shira": AdapterRow(
        peft="SHIRA",
        merge=LINEAR,
        note="the mask is made once and sent",
        paper="Bhardwaj et al. 2024 (arXiv:2406.13175)",
    ),
    "supertuning": AdapterRow(
        peft="SUPERTUNING",
        merge=LINEAR,
        note="the mask is made once and sent; select_top=false is SaRA's choice (arXiv:2409.06633)",
        paper="PEFT",
    ),
    "vb-lora": AdapterRow(
        peft="VBLORA",
        merge=NEAR,
        note="two sites may choose other vectors; freeze=vblora_logits after a warm-up in one place helps",
        paper="Li et al. 2024 (arXiv:2405.15179)",
    ),
    "uni-lora": AdapterRow(
        peft="UNILORA",
        merge=NEAR,
        paper="Li et al. 2025 (arXiv:2506.00799)",
    ),
    "oft": AdapterRow(
        peft="OFT",
        merge=NEAR,
        note="generators are averaged: what results is orthogonal",
        paper="Qiu et al. 2023 (arXiv:2306.07280)",
    ),
    "boft": AdapterRow(
        peft="BOFT",
        merge=NEAR,
        note="as oft",
        paper="Liu et al. 2023 (arXiv:2311.06243)",
    ),
    "road": AdapterRow(
        peft="ROAD",
        merge=NEAR,
        paper="Liao and Monz 2024 (arXiv:2409.00119)",
    ),
    "beft": AdapterRow(
        peft="BEFT",
        merge=LINEAR,
        note="biases",
        paper="PEFT",
    ),
    "ln-tuning": AdapterRow(
        peft="LN_TUNING",
        merge=LINEAR,
        note="targets names the norms",
        paper="Zhao et al. 2023 (arXiv:2312.11420)",
    ),
    "trainable-tokens": AdapterRow(
        peft="TRAINABLE_TOKENS",
        merge=LINEAR,
        note="token_indices=1+2+3",
        paper="PEFT",
    ),
    "prompt-tuning": AdapterRow(
        peft="PROMPT_TUNING",
        merge=NEAR,
        defaults={"num_virtual_tokens": 20},
        note="all sites start from one prompt, else the mean would mean nothing",
        paper="Lester et al. 2021 (arXiv:2104.08691)",
    ),
    "prefix-tuning": AdapterRow(
        peft="PREFIX_TUNING",
        merge=NEAR,
        defaults={"num_virtual_tokens": 20},
        note="as prompt-tuning",
        paper="Li and Liang 2021 (arXiv:2101.00190)",
    ),
}
REFUSED: dict[str, str] = {
    "p-tuning": "trains an encoder that PEFT does not save: use prompt-tuning",
    "delora": "divides by norms of what is trained, so that a mean means nothing: use lora",
    "kasa": "truncates the base's own singular values, and the base could not be rebuilt: use pissa",
    "xlora": "mixes adapters that are trained already",
    "poly": "routes between adapters by tasks that sites do not share",
}


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """A row with a user's values."""

    name: str
    settings: Mapping[str, Any]  # fields of PEFT's config
    freeze: tuple[str, ...]  # parts of names of what is not trained

    @property
    def row(self) -> AdapterRow:
        """Its row in the table."""
        return ADAPTERS[self.name]

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
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"adapter.{self.name}", unknown[0], f"unknown key: must be one of {sorted(known)}")
        if "lora_alpha" in known and "lora_alpha" not in settings:
            settings["lora_alpha"] = 2 * settings.get("r", settings.get("init_r", 8))
        try:
            made = PeftConfig.from_peft_type(peft_type=self.row.peft, **settings)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"adapter.{self.name}", dict(self.settings), f"is refused by PEFT: {error}") from error
        config: dict[str, Any] = json.loads(json.dumps(made.to_dict(), default=_plain, sort_keys=True))
        return config


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else dataclasses.asdict(value)


def _for_objective(peft: str, objective: Objective, known: set[str]) -> dict[str, Any]:
    """Fields that follow from what is learnt."""
    out: dict[str, Any] = {}
    if "target_modules" in known and peft != "LN_TUNING":
        out["target_modules"] = "all-linear"
    match objective:
        case Classification(head="mean-pool-linear"):
            out |= {"modules_to_save": ["classifier"]} if "modules_to_save" in known else {}
        case Classification():
            out["task_type"] = "SEQ_CLS"
        case CausalLM():
            out["task_type"] = "CAUSAL_LM"
        case Seq2SeqLM():
            out["task_type"] = "SEQ_2_SEQ_LM"
    return out


def adapter_named(text: str, field: str = "adapter") -> AdapterSpec:
    """Parse ``name`` or ``name(key=value,...)``.

    Keys are the fields of PEFT's config; ``targets`` is short for target_modules, ``save`` for modules_to_save, and
    ``freeze`` names parts that are not trained. Values of a list are joined by ``+``.

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
        settings[key] = _value(key, value)
    freeze = settings.pop("freeze", "")
    return AdapterSpec(name=name, settings=settings, freeze=tuple(part for part in str(freeze).split("+") if part))


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
