"""The tree in the docstring is the tree of the classes."""

from __future__ import annotations

import inspect
import re

from fedcompress import errors


def test_the_tree_is_drawn_as_it_is() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        match = re.match(r"^((?:│   |    )*(?:├── |└── )?)(\w+(?:Error))\b", line)
        if match:
            depth = len(match.group(1)) // 4
            path = [*path[:depth], match.group(2)]
            drawn[match.group(2)] = path[-2] if depth else "Exception"
    members = inspect.getmembers(errors, inspect.isclass)
    classes = {n: c.__mro__[1].__name__ for n, c in members if c.__module__ == errors.__name__}
    assert drawn == classes


def test_config_errors_read_field_value_rule() -> None:
    error = errors.ConfigError("site.name", "x y", "must match z")
    assert str(error) == "site.name: x y: must match z"
    assert (error.field, error.value, error.rule) == ("site.name", "x y", "must match z")


def test_kinds_of_a_config_error_are_reported_as_one() -> None:
    from fedcompress.errors import ConfigError, StateError, UnknownNameError, error_name

    assert error_name(UnknownNameError("rule", "x", "one of")) == error_name(ConfigError("a", 1, "b")) == "ConfigError"
    assert error_name(StateError("x")) == "StateError"
