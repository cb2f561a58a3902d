"""``encode``, ``decode``, ``inspect`` and ``codecs``: options, output, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedcompress.adapters import load_adapter, save_adapter
from fedcompress.cli.main import main
from fedcompress.codecs import CODECS
from tests.support import equal, lora_layout, normal

CONFIG = {"peft_type": "LORA", "r": 4, "modules_to_save": ["head"]}


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, object]:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedcompress", *map(str, args)])
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capsys.readouterr()
        return Done(int(done.value.code or 0), out, err)

    return run


@pytest.fixture
def work(tmp_path: Path) -> Path:
    layout = lora_layout()
    for seed, name in enumerate(("new", "old")):
        save_adapter(tmp_path / name, CONFIG, layout, normal(layout, seed))
    return tmp_path


def test_there_and_back(call, work: Path) -> None:
    facts = call("encode", work / "new", "-o", work / "x.fcu", "--codec", "none", "--json").facts
    assert facts["bytes"] == (work / "x.fcu").stat().st_size
    assert {"captured", "bits_per_parameter", "ratio_fp32", "ratio_bf16", "codec", "parts"} <= set(facts)
    facts = call("decode", work / "x.fcu", "-o", work / "again", "--json").facts
    assert facts["format"] == "peft"
    assert equal(load_adapter(work / "again").tensors, load_adapter(work / "new").tensors)
    assert "captured" in call("encode", work / "new", "-o", work / "x.fcu").out


def test_the_error_of_an_adapter_is_of_its_change(call, work: Path) -> None:
    text = call("encode", work / "new", "-o", work / "x.fcu", "--codec", "int(bits=8)").out
    assert all(word in text for word in ("error", "worst_module", "exact_bytes", "whole copies", "head.bias"))
    facts = call("encode", work / "new", "-o", work / "x.fcu", "--codec", "int(bits=8)", "--json").facts
    assert 0 < facts["error"] < 0.02
    assert facts["coded_parameters"] == 384
    measured = call("inspect", work / "x.fcu", "--reference", work / "new", "--json").facts
    assert measured["error"] == facts["error"]
    assert {row["module"] for row in measured["worst_modules"]} == {"m0", "m1"}
    text = call("encode", work / "new", "-o", work / "x.fcu", "--codec", "none").out
    assert "\nexact " not in text
    refused = call("encode", work / "new", "-o", work / "x.fcu", "--codec", "lora: int8; head: int4")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "give --base" in refused.err


def test_a_difference_and_its_distortion(call, work: Path) -> None:
    options = ("--base", work / "old")
    call("encode", work / "new", "-o", work / "d.fcu", *options, "--codec", "int8")
    assert call("decode", work / "d.fcu", "-o", work / "again", *options).code == 0
    facts = call("inspect", work / "d.fcu", "--reference", work / "new", *options, "--json").facts
    assert {"bytes", "kind", "section_bytes", "sections", "captured", "captured_by_group", "worst_tensors"} <= set(
        facts
    )
    assert facts["captured"] > 0.99
    text = call("inspect", work / "d.fcu", "--reference", work / "new", *options).out
    assert all(word in text for word in ("FILE", "captured", "worst_tensors", "m0.lora_A.weight"))
    done = call("decode", work / "d.fcu", "-o", work / "no", "--base", work / "new")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"error: --base: {work / 'new'}: must be the base")


def test_a_checkpoint(call, work: Path) -> None:
    save_file({"w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)}, work / "m.safetensors")
    call("encode", work / "m.safetensors", "-o", work / "m.fcu", "--budget", "1KiB", "--seed", 7)
    call("decode", work / "m.fcu", "-o", work / "again.safetensors")
    assert load_file(work / "again.safetensors")["w"].dtype == np.float16
    facts = call("inspect", work / "m.fcu", "--json").facts
    assert facts["codec"] == "transform(budget=1KiB)"
    assert sum(facts["section_bytes"][1:]) <= 1025
    facts = call("inspect", work / "m.safetensors", "--json").facts
    assert facts["groups"]["other"]["parameters"] == 4096
    assert "kurtosis" in call("inspect", work / "m.safetensors").out


@pytest.mark.parametrize(
    ("args", "start"),
    [
        (["encode", "new", "-o", "x.fcu", "--codec", "zip"], "error: --codec: zip: must be one of"),
        (["encode", "new", "-o", "x.fcu", "--codec", "int8", "--budget", "1KiB"], "error: --budget: 1KiB: must not"),
        (["encode", "new", "-o", "x.fcu", "--budget", "big"], "error: --budget: big: must be a size"),
        (["encode", "new", "-o", "x.fcu", "--seed", "-1"], "error: --seed: -1: must be from 0"),
        (["encode", "absent", "-o", "x.fcu"], "error: PATH: absent: must be a PEFT folder"),
        (["encode", "new", "-o", "x.fcu", "--base", "absent"], "error: --base: absent: must be a PEFT folder"),
        (["encode", "new", "-o", "old"], "error: -o: old: must be a file"),
        (["encode", "new", "-o", "good.fcu/x.fcu"], "error: file: good.fcu: "),
        (["decode", "absent.fcu", "-o", "out"], "error: PATH: absent.fcu: must be"),
        (["decode", "good.fcu", "-o", "out", "--base", "old"], "error: --base: old: must be left out"),
        (["decode", "good.fcu", "-o", "good.fcu"], "error: -o: good.fcu: must be a folder"),
        (["inspect", "new", "--reference", "old"], "error: --reference: old: is for an .fcu file"),
        (["inspect", "good.fcu", "--base", "old"], "error: --base: old: is for"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    call, work: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], start: str
) -> None:
    monkeypatch.chdir(work)
    assert call("encode", "new", "-o", "good.fcu", "--codec", "int8").code == 0
    done = call(*args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(start)
    assert done.err.count("\n") == 1


def test_a_truncated_file(call, work: Path) -> None:
    call("encode", work / "new", "-o", work / "x.fcu", "--codec", "int8")
    (work / "x.fcu").write_bytes((work / "x.fcu").read_bytes()[:-9])
    for args in (("decode", work / "x.fcu", "-o", work / "out"), ("inspect", work / "x.fcu")):
        done = call(*args)
        assert done.code == 1
        assert done.err.startswith("error: envelope: ")
    assert not (work / "out").exists()


@pytest.mark.parametrize("command", ["encode", "decode", "inspect", "codecs"])
def test_help_has_examples(call, command: str) -> None:
    text = call(command, "--help").out
    assert "Examples:" in text
    assert f"fedcompress {command} " in text


def test_codecs_lists_every_row(call) -> None:
    lines = call("codecs").out.splitlines()
    names = [line for line in lines if line and not line.startswith(" ")]
    assert names == list(CODECS)
    assert sum(line.strip().startswith("law ") for line in lines) == len(CODECS)


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "fedcompress", "--help"], capture_output=True, text=True, check=True)
    assert "encode" in done.stdout
