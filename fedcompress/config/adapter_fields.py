"""Checks an adapter config that was received, before PEFT sees it.

PEFT takes a config as its owner's: it opens files that one names, imports modules, and matches patterns as regular
expressions. A site has the config from its coordinator, so that only fields of this table are let through, each with
values of its kind: no paths, no modules, and names in place of patterns.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from fedcompress.errors import ConfigError, one_of

LARGEST = 2.0**53  # of a number
MOST_NAMES = 10_000  # in a list of names or of numbers, or in a dict
LONGEST_NAME = 300  # characters
LONGEST_TEXT = 1 << 20  # characters of a config
_NAME = re.compile(r"[A-Za-z0-9_.-]*")
# A name with dots, escaped or not, and perhaps anchored: as a regular expression it takes linear time.
_PATTERN = re.compile(r"\^?[A-Za-z0-9_-]+(\\?\.[A-Za-z0-9_-]+)*\$?")
_WORD = re.compile(r"[A-Za-z0-9_:()=-]*")  # no path


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and math.isfinite(value) and abs(value) <= LARGEST)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool) or (isinstance(value, str) and _is_short(value, _WORD))


def _is_short(value: str, pattern: re.Pattern[str]) -> bool:
    return len(value) <= LONGEST_NAME and pattern.fullmatch(value) is not None


def _is_names(value: Any) -> bool:
    """Return whether a value is a list of plain names, ``all-linear`` or null; other strings are patterns to PEFT."""
    if value is None or value == "all-linear":
        return True
    names = value if isinstance(value, list) else ["*"]
    return len(names) <= MOST_NAMES and all(isinstance(n, str) and _is_short(n, _NAME) for n in names)


def _is_integers(value: Any) -> bool:
    """Return whether a value is an integer, a list of them or of pairs of them, or such lists by plain name."""
    if isinstance(value, dict):
        return len(value) <= MOST_NAMES and all(_is_short(k, _NAME) and _is_integers(v) for k, v in value.items())
    items = value if isinstance(value, list) else [value]
    flat = [i for item in items for i in (item if isinstance(item, list) else [item])]
    return len(flat) <= MOST_NAMES and all(_is_number(i) and not isinstance(i, float) for i in flat)


def _is_pattern(value: Any) -> bool:
    """Return whether a value is null, or numbers by the names of modules or parameters."""
    if value is None:
        return True
    if not isinstance(value, dict) or len(value) > MOST_NAMES:
        return False
    return all(_is_short(k, _PATTERN) and _is_number(v) for k, v in value.items())


def _is_settings(value: Any) -> bool:
    """Return whether a value is null, or flags, numbers and words by name."""
    if value is None:
        return True
    if not isinstance(value, dict) or len(value) > MOST_NAMES:
        return False
    return all(_is_short(k, _NAME) and (_is_flag(v) or _is_number(v) or _is_word(v)) for k, v in value.items())


def _is_null(value: Any) -> bool:
    return value is None or value == {}


def _is_ignored(value: Any) -> bool:
    """Return True: the field is dropped before PEFT sees it, or PEFT reads it only beside one that must be null."""
    return True


# What each kind of field may be, in the words of the error.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "flag": (_is_flag, "true, false or null"),
    "number": (_is_number, "a finite number or null"),
    "word": (_is_word, "a word, true, false or null"),
    "names": (_is_names, "a list of plain names of modules or parameters, all-linear or null"),
    "integers": (_is_integers, "integers or null"),
    "pattern": (_is_pattern, "numbers by plain names of modules or parameters"),
    "settings": (_is_settings, "numbers and words by name"),
    "null": (_is_null, "null: a task cannot name files, modules or texts"),
    "ignored": (_is_ignored, ""),
}
TYPES = (
    *("ADALORA", "BEFT", "BOFT", "C3A", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA"),
    *("LOKR", "LORA", "MISS", "OFT", "PEANUT", "PREFIX_TUNING", "PROMPT_TUNING", "PVERA", "RANDLORA", "ROAD", "SHIRA"),
    *("SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
)
FIELDS: dict[str, str] = {
    name: kind
    for kind, names in {
        "flag": """apply_GS block_share coft decompose_both ensure_weight_tying fan_in_fan_out init_ia3_weights
            inference_mode lora_bias prefix_projection proportional_parameters rank_dropout_scale sample_at_inference
            save_indices save_only_topk_weights save_precomputed_indices save_projection select_top sparse
            use_cayley_neumann use_dora use_effective_conv2d use_idwt use_qalora use_rslora very_sparse""",
        "number": """alpha beta1 beta2 block_size boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor
            d_initial decompose_factor deltaT depth encoder_hidden_size eps generator_seed gralora_dropout gralora_k
            group_size hira_dropout hybrid_r init_logits_std init_r init_theta_d_bound init_v_bound
            init_vector_bank_bound lora_alpha lora_dropout mini_r miss_dropout module_dropout n_frequency
            num_attention_heads num_cayley_neumann_terms num_layers num_transformer_submodules num_vectors
            num_virtual_tokens oft_block_size orth_reg_weight proj_seed projection_prng_key projection_seed
            pvera_dropout qalora_group_size r randlora_alpha randlora_dropout random_loc_seed random_seed rank_dropout
            scaling sparsity target_r tfinal theta_d_length tinit tinylora_dropout token_dim topk total_step u
            unilora_dropout vblora_dropout vector_length vera_dropout weight_tying""",
        "word": """act_fn bias config_A_B config_C config_D_E init_lora_weights init_weights mask_type peft_type
            prompt_tuning_init task_type variant wavelet_family""",
        "names": """exclude_modules feedforward_modules layers_pattern modules_to_save target_modules
            target_parameters""",
        "integers": """alora_invocation_tokens layer_replication layers_to_transform token_indices
            trainable_token_indices""",
        "pattern": "alpha_pattern block_size_pattern n_frequency_pattern rank_pattern",
        "settings": "eva_config loftq_config lora_ga_config runtime_config",
        "null": """arrow_config corda_config kasa_config megatron_config monteclora_config
            prompt_tuning_init_text tokenizer_kwargs tokenizer_name_or_path use_bdlora velora_config""",
        "ignored": "auto_mapping base_model_name_or_path megatron_core peft_version revision",
    }.items()
    for name in names.split()
}


def check_adapter_config(text: str, *, field: str = "adapter_config") -> Mapping[str, Any]:
    """Parse an adapter config that was received, and refuse what PEFT should not be given.

    Args:
        text: the JSON of adapter_config.json, or of a run that trains weights of the base.
        field: name of the config in errors.

    Returns:
        The config.

    Raises:
        ConfigError: it is no JSON object, its type or a field of it is not in the tables here, or a value is not of
            the field's kind.
    """
    if len(text) > LONGEST_TEXT:
        raise ConfigError(field, f"{len(text)} characters", f"must be at most {LONGEST_TEXT}")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(field, text[:80], f"must be JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(field, text[:80], "must be a JSON object")
    if "weights" in config:
        _check_weights(config, field)
        return config
    kind = config.get("peft_type")
    if config and kind not in TYPES:
        raise ConfigError(f"{field}.peft_type", str(kind)[:80], one_of(TYPES, kind))
    for name, value in config.items():
        if name not in FIELDS:
            raise ConfigError(field, str(name)[:80], "is not a field that a task may have")
        is_allowed, rule = KINDS[FIELDS[name]]
        if not is_allowed(value):
            raise ConfigError(f"{field}.{name}", json.dumps(value)[:80], f"must be {rule}")
    return config


def _check_weights(config: Mapping[str, Any], field: str) -> None:
    """Check the config of a run that trains weights of the base; its own parser checks the values further."""
    settings = config["weights"]
    is_plain = isinstance(settings, dict) and all(
        _is_short(k, _NAME) and (_is_flag(v) or _is_number(v) or _is_word(v) or _is_names(v))
        for k, v in settings.items()
    )
    if not is_plain:
        rule = "must be numbers, words and lists of plain names by name"
        raise ConfigError(f"{field}.weights", json.dumps(settings)[:80], rule)
    if not _is_names(config.get("tied")):
        raise ConfigError(f"{field}.tied", json.dumps(config["tied"])[:80], "must be a list of plain names")
    unknown = sorted(set(config) - {"weights", "tied", *(n for n, kind in FIELDS.items() if kind == "ignored")})
    if unknown:
        raise ConfigError(field, unknown[0][:80], "is not a field that a task may have")
