"""Finds which modules and parameters an adapter's config names, as PEFT does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LAYER = r".*?\.[^.]*\.(?P<index>\d+)\."  # the first number in a module's name is its layer


def targets_module(config: Mapping[str, Any], module: str) -> bool:
    """Find whether a config names a module, as ``check_target_module_exists`` of peft/tuners/tuners_utils.py does.

    ``target_modules``, ``exclude_modules``, ``modules_to_save`` and ``layers_to_transform`` count. Where the config
    leaves the modules to the kind of model, which is not known here, the answer is no.

    Args:
        config: an adapter_config.json.
        module: name of the module in the base model.
    """
    targets = config.get("target_modules")
    saved = config.get("modules_to_save")
    if _is_named(config.get("exclude_modules"), module) or not targets or targets == "all-linear":
        return False
    if isinstance(saved, list) and any(_matches(rf"(^|.*\.){name}($|\..*)", module) for name in saved):
        return False
    if isinstance(targets, str) or module in targets:  # a whole name counts in any layer
        return _is_named(targets, module)
    return _is_named(targets, module) and _is_in_layers(config, module)


def targets_parameter(config: Mapping[str, Any], key: str) -> bool:
    """Find whether a config names a parameter in ``target_parameters``, whole or by the end of its name."""
    targets = config.get("target_parameters")
    return isinstance(targets, list) and any(key == name or key.endswith(f".{name}") for name in targets)


def _matches(pattern: str, text: str, whole: bool = False) -> bool:
    try:
        return bool((re.fullmatch if whole else re.match)(pattern, text))
    except re.error:  # reported where patterns are read
        return False


def _is_named(names: Any, module: str) -> bool:
    """Return whether a regular expression, or a list of names, has a module."""
    if isinstance(names, str):
        return bool(names) and _matches(names, module, whole=True)
    if not isinstance(names, list):
        return False
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_in_layers(config: Mapping[str, Any], module: str) -> bool:
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or []
    named = [patterns] if isinstance(patterns, str) else patterns
    expressions = [rf"(?:^|.*?\.){name}\.(?P<index>\d+)\." for name in named] or [_LAYER]
    try:
        found = next((match for e in expressions if (match := re.match(e, module))), None)
    except re.error:
        return False
    return found is not None and int(found["index"]) in (layers if isinstance(layers, list) else [layers])
