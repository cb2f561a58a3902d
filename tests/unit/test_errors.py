"""The tree in the docstring is the tree of the classes; errors that list choices name the one that was meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.site import SiteConfig
from fedcompress import errors
from fedcompress.adapters.spec import parse_adapter
from fedcompress.codecs import CODECS, CodecSpec
from fedcompress.config.drift import parse_drift_correction
from fedcompress.config.run_config import parse_run_config
from fedcompress.config.schedules import parse_schedule
from fedcompress.errors import ConfigError, one_of
from fedcompress.merging import parse_rule, parse_server_optimizer, parse_weighting
from fedcompress.optim.table import parse_optimizer
from server.settings import load_settings

RUN = {"state-dir": "s", "initial-adapter": "i"}


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


@pytest.mark.parametrize(
    ("parse", "text", "meant"),
    [
        (CodecSpec.parse, "lora-transfrom", "lora-transform"),
        (CodecSpec.parse, "lora_ternary", "lora-ternary"),
        (CodecSpec.parse, "topk(density=0.1)|ternery", "ternary"),
        (CodecSpec.parse, "topk(densty=0.1)|ternary", "density"),
        (CodecSpec.parse, "haed: none", "head"),
        (parse_rule, "lora-rigde", "lora-ridge"),
        (parse_rule, "trimmed_mean", "trimmed-mean"),
        (parse_rule, "dare(p=0.5)", None),
        (parse_optimizer, "galor(rank=2)", "galore"),
        (parse_optimizer, "galore(rnk=2)", "rank"),
        (parse_optimizer, "AdamW8bit", None),
        (parse_schedule, "cosin", "cosine"),
        (parse_weighting, "uniforn", "uniform"),
        (parse_server_optimizer, "adm", "adam"),
        (parse_drift_correction, "fedporx", "fedprox"),
        (parse_adapter, "loar(r=8)", "lora"),
        (parse_adapter, "rs-lora", "rslora"),
        (lambda text: parse_run_config({text: 3}), "min-site", "min-sites"),
        (lambda text: parse_run_config({text: 3}), "quorom", "quorum"),
        (lambda text: parse_run_config({**RUN, "sampling": text}), "unifrom", "uniform"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(
    parse: Callable[[str], object], text: str, meant: str | None
) -> None:
    with pytest.raises(ConfigError) as found:
        parse(text)
    assert f": did you mean {meant}?" in str(found.value) or meant is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [("[coordinator]\nstate-dir = 's'\n", "state_dir"), ("[coordinator]\nstate_dir = 's'\nlisten_on = ''\n", "listen")],
)
def test_keys_of_the_coordinators_file(text: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        load_settings(tmp_path / "c.toml")


@pytest.mark.parametrize(("text", "meant"), [("[site]\nnam = 'a'\n", "name"), ("[modle]\npath = 'x'\n", "model")])
def test_keys_of_a_sites_file(text: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ConfigError) as found:
        SiteConfig.load(tmp_path / "site.toml")
    assert f"did you mean {meant}?" in str(found.value)


def test_presets_are_listed_with_the_stages() -> None:
    """They stand where a stage does, and were not in the list."""
    with pytest.raises(ConfigError) as found:
        CodecSpec.parse("zip")
    assert all(repr(name) in str(found.value) for name in CODECS)


def test_what_is_like_nothing_gets_the_list_alone() -> None:
    assert one_of(["a", "b"], "zzz") == one_of(["a", "b"]) == "must be one of ['a', 'b']"
    assert one_of(["Adam", "sgd"], "'ADAM'") == "must be one of ['Adam', 'sgd']: did you mean Adam?"
