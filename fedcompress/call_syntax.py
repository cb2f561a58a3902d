"""A call in text, ``name(key=value,...)``, names a codec, merge rule or optimizer in a flat config.

Each is a dataclass with a ``name``; the keys are its fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from fedcompress.errors import ConfigError, UnknownNameError, one_of

_CALL = re.compile(r"([a-z][a-z0-9-]*)\s*(?:\(([^()]*)\))?")  # name, and what is between the parentheses


class Configured(Protocol):
    """A dataclass with a name is what a call in text makes."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Made = TypeVar("Made", bound=Configured)


def _key(name: str) -> str:
    """Return a field's name in text: ``lambda_`` is written ``lambda``."""
    return name.rstrip("_")


def format_call(made: Configured) -> str:
    """Return the shortest call in text that makes an equal object; parameters with their default are left out."""
    args = [f"{_key(f.name)}={getattr(made, f.name)}" for f in fields(made) if getattr(made, f.name) != f.default]
    return f"{made.name}({','.join(args)})" if args else made.name


def parse_call(
    text: str, choices: Mapping[str, type[Made]], field: str, *, listed: Iterable[str] | None = None
) -> Made:
    """Build the object that a call in text names.

    Args:
        text: ``name`` or ``name(key=value,...)``.
        choices: dataclasses by name; their fields are int, float or str.
        field: name of the setting in error messages.
        listed: names that an error lists, where others than the choices can stand in its place; None lists these.

    Returns:
        An instance of the named dataclass.

    Raises:
        UnknownNameError: the text is no call, or names none of the choices; lists them.
        ConfigError: unknown key, or a value out of range; lists the keys.
    """
    names = choices if listed is None else listed
    match = _CALL.fullmatch(text.strip())
    if match is None:
        rule = f"must be name or name(key=value,...); name {one_of(names, text)}"
        raise UnknownNameError(field, repr(text.strip()), rule)
    name, body = match.group(1), match.group(2)
    if name not in choices:
        raise UnknownNameError(field, name, one_of(names, name))
    known = {_key(f.name): f for f in fields(choices[name])}
    kwargs: dict[str, object] = {}
    for item in body.split(",") if body and body.strip() else []:
        key, equals, value = (s.strip() for s in item.partition("="))
        if not equals or key not in known or known[key].name in kwargs:
            rule = f"must be key=value, once each; key {one_of(known, key)}"
            raise ConfigError(f"{field}.{name}", item.strip(), rule)
        kwargs[known[key].name] = _convert(value, str(known[key].type), f"{field}.{name}.{key}")
    for key, known_field in known.items():
        if known_field.default is MISSING and known_field.name not in kwargs:
            raise ConfigError(f"{field}.{name}", text.strip(), f"needs {key}, as {name}({key}=...)")
    return choices[name](**kwargs)


def _convert(value: str, kind: str, field: str) -> object:
    """Convert the text of a parameter to the type of its field: int, finite float, or str."""
    try:
        match kind:
            case "int":
                return int(value)
            case "float":
                number = float(value)
                if not math.isfinite(number):
                    raise ValueError(value)
                return number
            case _:
                return value
    except ValueError as error:
        raise ConfigError(field, repr(value), f"must be a number of type {kind}") from error
