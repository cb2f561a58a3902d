"""The command line: JSON, one-line errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedcompress.adapters import save_adapter
from fedcompress.codecs import CODECS, CodecSpec
from fedcompress.merging import RULES, SERVER_OPTIMIZERS, WEIGHTINGS
from fedcompress.merging.data_driven import DATA_RULES
from fedcompress.optim import OPTIMIZERS
from fedcompress.pipeline.updates import encode_update
from tests.support import lora_layout, normal, update_header

SCRIPT = Path(sys.executable).parent / "fedcompress"


def call(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *map(str, args)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "table"),
    [
        ("codecs", [*CODECS]),
        ("rules", [*RULES, *DATA_RULES, *SERVER_OPTIMIZERS, *WEIGHTINGS]),
        ("optimizers", [*OPTIMIZERS]),
    ],
)
def test_tables(command: str, table: list[str]) -> None:
    done = call(command, "--json")
    assert done.returncode == 0
    assert [row["name"] for row in json.loads(done.stdout)] == table
    plain = call(command)
    assert plain.returncode == 0
    assert all(name in plain.stdout for name in table)


def test_rules_say_identity() -> None:
    rows = json.loads(call("rules", "--json").stdout)
    said = {row["name"]: row.get("identity", "") for row in rows if row["name"] in RULES}
    assert said == {name: row.identity for name, row in RULES.items()}
    assert call("adapters", "--json").returncode == 0


def test_rules_that_need_data_say_what() -> None:
    rows = {row["name"]: row for row in json.loads(call("rules", "--json").stdout)}
    assert all(rows[name]["needs"] == row.needs for name, row in DATA_RULES.items())
    assert rows["widen"]["call"] == "fedcompress.merging.data_driven.widen(base, updates, t=1.0, s=1.0, transposed=())"
    assert all("needs" not in rows[name] for name in RULES)


def test_inspect_an_update_and_an_adapter(tmp_path: Path) -> None:
    layout = lora_layout()
    values = normal(layout, 0)
    data, _ = encode_update(values, layout, CodecSpec.parse("int8"), update_header(layout, values))
    (tmp_path / "u.fcu").write_bytes(data)
    facts = json.loads(call("inspect", tmp_path / "u.fcu", "--json").stdout)
    assert (facts["bytes"], facts["kind"], facts["codec"], facts["site"]) == (len(data), "UPDATE", "int", "north")
    save_adapter(tmp_path / "adapter", {"r": 4}, layout, values)
    facts = json.loads(call("inspect", tmp_path / "adapter", "--json").stdout)
    assert (facts["parameters"], facts["bf16_bytes"]) == (layout.numel, 2 * layout.numel)
    assert "UPDATE" in call("inspect", tmp_path / "u.fcu").stdout


@pytest.mark.parametrize(
    ("args", "start"),
    [
        (["demo", "--codec", "zip"], "error: --codec: zip: must be one of"),
        (["demo", "--sites", "99"], "error: --sites: 99: must be from 1 to 8"),
        (["experiment", "/nonexistent.toml", "-o", "/tmp/x"], "error: GRID: /nonexistent.toml: must be"),
        (["inspect", "/nonexistent.fcu"], "error: PATH: /nonexistent.fcu: must be"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(args: list[str], start: str) -> None:
    done = call(*args)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith(start)
    assert "Traceback" in call(*args, "--debug").stderr


def test_a_corrupt_update(tmp_path: Path) -> None:
    (tmp_path / "u.fcu").write_bytes(b"FCU\x01 and then nothing")
    done = call("inspect", tmp_path / "u.fcu")
    assert done.returncode == 1
    assert done.stderr.startswith("error: envelope")


def test_unknown_options_and_help() -> None:
    assert call("demo", "--nope").returncode == 2
    text = call("demo", "--help").stdout
    assert "--codec" in text
    assert "Examples" in text


def test_adapters_end_with_what_is_refused() -> None:
    rows = {r["name"]: r for r in json.loads(call("adapters", "--json").stdout)}
    assert rows["lora"]["merge"] == "product"
    assert rows["psoft"]["merge"] == "refused"
    assert rows["psoft"]["note"]
