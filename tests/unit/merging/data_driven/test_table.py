"""The table of rules that need data."""

from __future__ import annotations

from dataclasses import fields
from inspect import getdoc

import pytest

from fedcompress.merging import RULES, data_driven
from fedcompress.merging.data_driven import DATA_RULES
from tests.support import ROOT

DOCS = ROOT / "docs" / "merging-data.md"


@pytest.mark.parametrize("name", DATA_RULES)
def test_every_row_is_whole(name: str) -> None:
    row = DATA_RULES[name]
    assert all(getattr(row, f.name) for f in fields(row))
    assert row.call is getattr(data_driven, name)
    assert "Raises:" in (getdoc(row.call) or "")
    assert f"## {name}\n" in DOCS.read_text()
    assert row.paper.rpartition("arXiv:")[2].rstrip(")") in DOCS.read_text()


def test_names_are_of_one_table_only() -> None:
    assert not set(DATA_RULES) & set(RULES)
    assert list(DATA_RULES) == sorted(DATA_RULES)
    assert all(hasattr(data_driven, name) for name in data_driven.__all__)
