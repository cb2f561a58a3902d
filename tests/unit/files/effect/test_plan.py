"""What no error can be known of, and codecs with clauses for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedcompress import errors
from fedcompress.adapters import adapter_digest, save_adapter
from fedcompress.adapters.safetensors_io import open_source
from fedcompress.chunks import split_layout
from fedcompress.codecs import CodecSpec, decode_sections, encode_sections
from fedcompress.files import decode_file, encode_file, inspect_file
from fedcompress.files.manifest import Manifest
from fedcompress.types import state_digest
from fedcompress.wire import Kind, Limits, pack, unpack
from tests.support import update_header

HEAD = "base_model.model.score.weight"


def write_adapter(path: Path, dtype: type = np.float32) -> Path:
    draw = np.random.default_rng(0)
    values = {HEAD: draw.standard_normal((4, 64)), "base_model.model.score.bias": draw.standard_normal(4)}
    for letter, shape in (("A", (4, 64)), ("B", (64, 4))):
        values[f"base_model.model.q.lora_{letter}.weight"] = draw.standard_normal(shape)
    path.mkdir()
    save_file({n: v.astype(dtype) for n, v in values.items()}, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "modules_to_save": ["score"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("codec", ["int(bits=4)", "lora: int(bits=4)", "transform(budget=0.28)", "sign"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_heads_are_exact(tmp_path: Path, codec: str, dtype: type) -> None:
    source = write_adapter(tmp_path / "a", dtype)
    facts = encode_file(source, tmp_path / "a.fcu", codec=codec)
    decode_file(tmp_path / "a.fcu", tmp_path / "b")
    found = load_file(tmp_path / "b" / "adapter_model.safetensors")
    for name, value in load_file(source / "adapter_model.safetensors").items():
        assert np.array_equal(value, found[name]) == ("score" in name)
    assert [(row["tensors"], row["parameters"]) for row in facts["exact"]] == [(2, 260)]
    assert "whole copies" in facts["exact"][0]["why"]
    assert facts["exact_bytes"] < 260 * np.dtype(dtype).itemsize + 40
    sections = inspect_file(tmp_path / "a.fcu")["sections"]
    assert sections[-1]["clause"] == "exact"
    assert (sections[-1]["bytes"], sections[-1]["parameters"]) == (facts["exact_bytes"], 260)
    assert sum(row["parameters"] for row in sections) == facts["parameters"]


@pytest.mark.parametrize("clause", ["head: int(bits=8)", "head: bf16", "head: none"])
def test_a_clause_that_is_nearly_exact_is_taken(tmp_path: Path, clause: str) -> None:
    source = write_adapter(tmp_path / "a")
    facts = encode_file(source, tmp_path / "a.fcu", codec=f"lora: int(bits=4); {clause}")
    assert facts["exact"] == []
    decode_file(tmp_path / "a.fcu", tmp_path / "b")
    before, after = (load_file(tmp_path / f / "adapter_model.safetensors")[HEAD] for f in "ab")
    assert np.linalg.norm(before - after) < 0.01 * np.linalg.norm(before)


@pytest.mark.parametrize("codec", ["lora: none; head: int(bits=4)", "lora-ternary", "lora: int8; head: sign"])
def test_a_clause_that_loses_more_is_refused(tmp_path: Path, codec: str) -> None:
    source = write_adapter(tmp_path / "a")
    with pytest.raises(errors.ConfigError, match=r"--codec: head: .*score.*: at most 0.01; give --base, or"):
        encode_file(source, tmp_path / "a.fcu", codec=codec)
    assert not list(tmp_path.glob("*.fcu*"))
    encode_file(source, tmp_path / "a.fcu", codec=codec, base=source)


def test_a_factor_that_is_promised_as_it_is(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a")
    facts = encode_file(source, tmp_path / "a.fcu", codec="lora_a: none; lora_b: int(bits=8)")
    decode_file(tmp_path / "a.fcu", tmp_path / "b")
    before, after = (load_file(tmp_path / f / "adapter_model.safetensors") for f in "ab")
    name = "base_model.model.q.lora_A.weight"
    assert np.array_equal(before[name], after[name])
    assert 0 < facts["error"] < 0.02


@pytest.mark.parametrize("codec", ["random(density=0.1)|none", "dare", "darex-q"])
def test_a_code_that_is_worse_than_no_adapter(tmp_path: Path, codec: str) -> None:
    source = write_adapter(tmp_path / "a")
    with pytest.raises(errors.ConfigError, match=r"--codec: random.*: misses the change .* must be at most 1"):
        encode_file(source, tmp_path / "a.fcu", codec=codec)
    assert not list(tmp_path.glob("*.fcu*"))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a")
    for name in (HEAD, "base_model.model.q.lora_B.weight"):
        values = load_file(write_adapter(tmp_path / name) / "adapter_model.safetensors")
        values[name][0, 0] = np.inf
        save_file(values, source / "adapter_model.safetensors")
        with pytest.raises(errors.NonFiniteError, match=name):
            encode_file(source, tmp_path / "a.fcu")


@pytest.mark.parametrize("codec", ["int(bits=4)", "lora: int(bits=4); other: none"])
def test_files_that_lie_about_their_sections(tmp_path: Path, codec: str) -> None:
    encode_file(write_adapter(tmp_path / "a"), tmp_path / "a.fcu", codec=codec)
    envelope = unpack((tmp_path / "a.fcu").read_bytes(), Limits(max_body=1 << 30))
    manifest, *sections = envelope.sections
    lies = (
        sections[:-1],
        [],
        [*sections, b""],
        [*sections[:-1], b""],
        sections[::-1],
        [*sections[:-1], sections[-1] + b"x"],
    )
    for lie in lies:
        (tmp_path / "bad.fcu").write_bytes(pack(envelope.header, (manifest, *lie)))
        with pytest.raises(errors.WireError, match="section"):
            decode_file(tmp_path / "bad.fcu", tmp_path / "b")
        assert not (tmp_path / "b").exists()


def test_a_file_of_an_earlier_version(tmp_path: Path) -> None:
    """It has all tensors entry by entry; it decodes as before, and its error is told from the change."""
    source = open_source(write_adapter(tmp_path / "a"))
    slices = split_layout(source.layout)[0]
    values = {n: v * np.float32(0.01 if "lora_B" in n else 1) for n, v in source.values(slices).items()}
    save_adapter(tmp_path / "a", dict(source.config or {}), source.layout, values)
    spec = CodecSpec.parse("lora_a: none; lora_b: int(bits=2); head: none")
    sections = encode_sections(spec, source.layout, values)
    decoded = decode_sections(spec, source.layout, sections)
    manifest = Manifest(
        format="peft", pieces=slices, part=0, parts=1, after="", codec=str(spec), adapter_config=source.config
    )
    header = update_header(
        source.layout,
        decoded,
        kind=Kind.FILE,
        codec=str(spec),
        base_digest=b"",
        result_digest=state_digest(source.layout, decoded),
        adapter_digest=adapter_digest(source.config or {}),
    )
    assert manifest.to_section()[0] == 1
    (tmp_path / "a.fcu").write_bytes(pack(header, (manifest.to_section(), *sections)))
    decode_file(tmp_path / "a.fcu", tmp_path / "b")
    found = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert all(np.array_equal(found[n], v) for n, v in decoded.items())
    a, b = (f"base_model.model.q.lora_{x}.weight" for x in "AB")
    error = np.linalg.norm(values[b] @ values[a] - decoded[b] @ decoded[a]) / np.linalg.norm(values[b] @ values[a])
    facts = inspect_file(tmp_path / "a.fcu", reference=tmp_path / "a")
    assert np.isclose(facts["error"], error, rtol=1e-4)
    assert facts["captured"] < 0.9 < 1 - float(np.sum((values[b] - decoded[b]) ** 2)) / float(np.sum(values[a] ** 2))
