"""The page with every key of the run config is complete, and made from the code."""

from __future__ import annotations

from dataclasses import fields

import pytest

from fedcompress.config.run_config import RunConfig
from fedcompress.config.run_keys import RUN_KEYS, describe_run_keys
from tests.support import ROOT


def test_every_key_is_there_once() -> None:
    listed = [key for keys in RUN_KEYS.values() for key in keys]
    assert sorted(listed) == sorted(f.name.replace("_", "-") for f in fields(RunConfig))


def test_the_page_is_that_of_the_code() -> None:
    command = "python -m fedcompress.config.run_keys > docs/run-config.md"
    assert (ROOT / "docs" / "run-config.md").read_text() == describe_run_keys(), command


@pytest.mark.parametrize("key", [key for keys in RUN_KEYS.values() for key in keys])
def test_every_key_says_what_it_does_and_when_to_change_it(key: str) -> None:
    row = next(keys[key] for keys in RUN_KEYS.values() if key in keys)
    assert row.unit
    assert len(row.what) > 10
    assert row.when
    assert "|" not in row.unit + row.what + row.when
