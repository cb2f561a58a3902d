"""docs/extending.md is done as it stands there: files are written, rows are added, contract suites run on them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedcompress.adapters.table
import fedcompress.codecs.table
import fedcompress.merging.table
import fedcompress.optim.table
from fedcompress import ADAPTERS, CODECS, OPTIMIZERS, RULES, CodecSpec, build_optimizer, decode_update, encode_update
from fedcompress.adapters.attach import build_peft_config
from fedcompress.cli.main import app
from fedcompress.merging import parse_rule
from fedcompress.optim import parse_optimizer
from fedcompress.types import zeros
from tests.support import ROOT, lora_layout, normal, update_header
from tests.unit.adapters import sites
from tests.unit.adapters import test_contract as adapter_contract
from tests.unit.codecs import test_contract as codec_contract
from tests.unit.merging import test_engine as merging_contract
from tests.unit.optim.rules import test_rules as optimizer_contract

TEXT = (ROOT / "docs" / "extending.md").read_text()
TABLES: dict[str, tuple[dict[str, Any], ModuleType]] = {
    "CODECS": (CODECS, fedcompress.codecs.table),
    "RULES": (RULES, fedcompress.merging.table),
    "OPTIMIZERS": (OPTIMIZERS, fedcompress.optim.table),
    "ADAPTERS": (ADAPTERS, fedcompress.adapters.table),
}


def block(mark: str) -> str:
    """The code behind a mark."""
    found = re.findall(rf"<!-- {re.escape(mark)} -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(found) == 1, mark
    return found[0]


def write_module(file: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Step 1: the file, loaded as the module that it will be."""
    path = folder / Path(file).name
    path.write_text(block(f"file: {file}"))
    name = file.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def add_row(table: str, name: str, module: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2: the row, with the names that the table's file has."""
    rows, home = TABLES[table]
    names = {**vars(home), **(vars(module) if module is not None else {})}
    monkeypatch.setitem(rows, name, value_of(block(f"row: {table} {name}"), names))


def value_of(code: str, names: dict[str, Any]) -> Any:
    """What an expression of the document is."""
    exec(f"value = {code}", names)
    return names["value"]


def listed(command: str) -> dict[str, Any]:
    """Rows that a command of tables prints."""
    return {row["name"]: row for row in json.loads(CliRunner().invoke(app, [command, "--json"]).output)}


def test_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write_module("fedcompress/codecs/quantizers/half.py", tmp_path, monkeypatch)
    add_row("CODECS", "half", module, monkeypatch)
    law = value_of(block("law: half"), {"np": np})  # step 3
    monkeypatch.setitem(codec_contract.ENTRY_LAWS, "half", law)
    monkeypatch.setitem(codec_contract.SAMPLES, "half", "half")
    for spec in ("half", "topk(density=0.3)|half", "head: half; none"):
        codec_contract.test_round_trip(spec)
    codec_contract.test_law("half")
    codec_contract.test_a_clause_without_tensors_has_a_section("half")
    layout = lora_layout()  # step 4: equal bytes, which decode again
    values, header = normal(layout, 1), update_header(layout, zeros(layout))
    data, decoded = encode_update(values, layout, CodecSpec.parse("half"), header)
    assert data == encode_update(values, layout, CodecSpec.parse("half"), header)[0]
    assert all((decode_update(data, layout)[1][n] == v).all() for n, v in decoded.items())
    assert listed("codecs")["half"]["law"].startswith("relative error")  # step 5


def test_a_merge_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write_module("fedcompress/merging/rules/midrange.py", tmp_path, monkeypatch)
    add_row("RULES", "midrange", module, monkeypatch)
    merging_contract.test_equal_updates_are_returned("midrange", "factors")  # step 3
    merging_contract.test_equal_updates_are_returned("midrange", "product")
    merging_contract.test_order_and_scale_of_weights_do_not_matter("midrange")
    merging_contract.test_bad_weights("midrange")
    updates = [normal(merging_contract.LAYOUT, seed, 0.1) for seed in (1, 2, 3)]
    merged = merging_contract.merge("midrange", [1.0, 2.0, 3.0], updates)
    for name, value in merged.items():  # step 4, in plain numbers
        columns = zip(*(u[name].ravel().tolist() for u in updates), strict=True)
        assert np.allclose(value.ravel(), [(min(c) + max(c)) / 2 for c in columns], atol=1e-7)
    assert listed("rules")["midrange"]["kind"] == "elementwise"  # step 5
    assert parse_rule("midrange").name == "midrange"


def test_an_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write_module("fedcompress/optim/rules/rmsprop.py", tmp_path, monkeypatch)
    add_row("OPTIMIZERS", "rmsprop", module, monkeypatch)
    for call in ("rmsprop", "rmsprop(decay=0.9,state=8bit)"):  # step 3
        optimizer_contract.test_the_same_names_and_seeds_give_the_same_steps(call, (24, 16))
        optimizer_contract.test_an_elementwise_rule_does_the_same_on_any_parts(call, (24, 16), (0, 100, 384))
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))  # step 4
    theirs.load_state_dict(ours.state_dict())
    steps = [build_optimizer(ours, "rmsprop(decay=0.9)", lr=1e-2), torch.optim.RMSprop(theirs.parameters(), 1e-2, 0.9)]
    for seed in range(4):
        batch = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
        for model, optimizer in zip((ours, theirs), steps, strict=True):
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert listed("optimizers")["rmsprop"]["state_bytes"] == 4  # step 5
    assert parse_optimizer("rmsprop").name == "rmsprop"


@pytest.mark.filterwarnings("ignore")  # peft says much
def test_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_row("ADAPTERS", "lora-gaussian", None, monkeypatch)
    assert build_peft_config({"peft_type": ADAPTERS["lora-gaussian"].peft}) is not None  # step 1
    assert ADAPTERS["lora-gaussian"].start == "template"  # step 3
    base = sites.llama(tmp_path / "llama")
    adapter_contract.test_a_round_in_short("lora-gaussian(r=4)", base, base, tmp_path)  # step 4
    assert listed("adapters")["lora-gaussian"]["peft"] == "LORA"  # step 5
