"""``fedcompress merge``: options, output, reports, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fedcompress.adapters import load_adapter, save_adapter
from fedcompress.cli.main import main
from fedcompress.types import Layout, TensorSpec
from tests.support import lora_layout, normal

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["m0", "m1"], "modules_to_save": ["head"]}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedcompress", *map(str, args)])
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return run


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate("abc"):
        save_adapter(tmp_path / name, CONFIG, lora_layout(), normal(lora_layout(), seed))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def product(folder: Path, module: int) -> np.ndarray:
    # a merge gives factors the names that PEFT gives them
    tensors = {name.removeprefix("base_model.model."): v for name, v in load_adapter(folder).tensors.items()}
    return tensors[f"m{module}.lora_B.weight"].astype(np.float64) @ tensors[f"m{module}.lora_A.weight"]


def test_weights_and_files(call, work: Path) -> None:
    assert call("encode", "c", "-o", "c.fcu", "--codec", "none")[0] == 0
    code, out, _ = call("merge", "a", "b", "c.fcu", "--weights", "1,1,2", "-o", "out", "--json")
    assert code == 0
    facts = json.loads(out)
    for module in range(2):
        mean = sum(w * product(work / n, module) for w, n in zip((0.25, 0.25, 0.5), "abc", strict=True))
        assert np.allclose(product(work / "out", module), mean, atol=1e-5)
    assert facts["rank"] == [12, 12]
    assert [s["weight"] for s in facts["sites"]] == [0.25, 0.25, 0.5]
    assert facts["bytes"] == (work / "out" / "adapter_model.safetensors").stat().st_size
    assert load_adapter(work / "out").config["lora_alpha"] == 12


@pytest.mark.parametrize(
    "options",
    [
        ["--rank", "4"],
        ["--energy", "0.5"],
        ["--rule", "fedex"],
        ["--rule", "lora-ridge(ridge=1e-2)"],
        ["--rule", "ties(density=0.5)", "--space", "product", "--rank", "4"],
        ["--rule", "ties"],
    ],
)
def test_forms(call, work: Path, options: list[str]) -> None:
    code, out, err = call("merge", "a", "b", "-o", "out", *options)
    assert (code, err) == (0, "")
    assert all(word in out for word in ("merge_error", "contribution", "m0", "sites", "largest errors"))
    assert load_adapter(work / "out").layout.by_name["base_model.model.m0.lora_A.weight"].shape[1] == 24


def test_reports(call, work: Path) -> None:
    _, out, _ = call("merge", "a", "b", "-o", "out", "--rank", "4", "--report", "new/r.json", "--json")
    assert json.loads((work / "new" / "r.json").read_text()) == json.loads(out)
    pytest.importorskip("matplotlib")
    assert call("merge", "a", "b", "c", "-o", "out", "--rank", "4", "--report", "r.png")[0] == 0
    data = (work / "r.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000


@pytest.mark.parametrize(
    ("args", "start"),
    [
        (["a", "absent", "-o", "out"], "error: PATH: absent: must be a PEFT folder"),
        (["a", "b", "-o", "out", "--rule", "zip"], "error: --rule: zip: must be one of ['exact', 'fedex', 'flora'"),
        (["a", "b", "-o", "out", "--rule", "lora-ridge(ridge=0)"], "error: rule.lora-ridge.ridge: 0.0: must be from"),
        (["a", "b", "-o", "out", "--weights", "1,x"], "error: --weights: '1,x': must be numbers"),
        (["a", "b", "-o", "out", "--weights", "1"], "error: weights: [1.0]: must be 2 finite numbers"),
        (["a", "b", "-o", "out", "--weights", "1,-1"], "error: --weights: [1.0, -1.0]: must have a sum above 0"),
        (["a", "b", "-o", "out", "--weights", "-1,2", "--rule", "krum"], "error: --weights: [-1.0, 2.0]: a negative"),
        (["a", "b", "-o", "out", "--rank", "0"], "error: --rank: 0: must be at least 1"),
        (["a", "b", "-o", "out", "--report", "x.pdf"], "error: --report: x.pdf: must be a name that ends in"),
        (["a", "b", "-o", "a"], "error: -o: a: must be a folder, and none"),
        (["a", "b", "-o", "a/adapter_config.json"], "error: -o: a/adapter_config.json: must be a folder"),
        (["a", "b", "-o", "a/adapter_config.json/x"], "error: file: "),
    ],
)
def test_bad_input_is_one_line_and_exit_2(call, work: Path, args: list[str], start: str) -> None:
    code, out, err = call("merge", *args)
    assert (code, out) == (2, "")
    assert err.startswith(start)
    assert err.count("\n") == 1
    assert not (work / "out").exists()


def test_negative_weights(call, work: Path) -> None:
    for folder in "ab":  # heads are saved whole
        tensors = load_adapter(work / folder)
        kept = Layout(tuple(t for t in tensors.layout.tensors if "lora" in t.name))
        save_adapter(work / folder, CONFIG, kept, {t.name: tensors.tensors[t.name] for t in kept.tensors})
    code, out, _ = call("merge", "a", "b", "--weights", "1,-0.5", "--sum", "-o", "out", "--json")
    assert code == 0
    assert [s["weight"] for s in json.loads(out)["sites"]] == [1, -0.5]
    for module in range(2):
        found = product(work / "out", module)
        assert np.allclose(found, product(work / "a", module) - product(work / "b", module) / 2, atol=1e-5)
    assert call("merge", "a", "b", "--weights", "1,-0.5", "-o", "out", "--json")[0] == 0
    assert np.allclose(product(work / "out", 0), 2 * product(work / "a", 0) - product(work / "b", 0), atol=1e-5)


def test_dora_shows_no_figures(call, work: Path) -> None:
    for folder in "ab":
        adapter = load_adapter(work / folder)
        magnitude = TensorSpec(name="m0.lora_magnitude_vector", shape=(24,), group="other")
        layout = Layout(tuple(sorted((*adapter.layout.tensors, magnitude), key=lambda t: t.name)))
        tensors = {t.name: adapter.tensors.get(t.name, np.ones(t.shape, np.float32)) for t in layout.tensors}
        save_adapter(work / folder, {**CONFIG, "use_dora": True}, layout, tensors)
    code, out, _ = call("merge", "a", "b", "-o", "out")
    assert code == 0
    assert "no figures" in " ".join(out.split())
    assert not any(word in out for word in ("merge_error", "largest errors", "None"))
    assert json.loads(call("merge", "a", "b", "-o", "out", "--json")[1])["merge_error"] is None


def test_help_has_examples(call) -> None:
    code, out, _ = call("merge", "--help")
    assert code == 0
    assert "fedcompress merge north south -o merged" in out
