"""Adapters and checkpoints to .fcu files and back."""

from __future__ import annotations

import json
import math
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedcompress import errors
from fedcompress.adapters import load_adapter, save_adapter
from fedcompress.adapters.safetensors_io import open_source
from fedcompress.chunks import MAX_CHUNK_ENTRIES, layout_of_slices, split_layout
from fedcompress.codecs import CodecSpec
from fedcompress.files import decode_file, encode_file, inspect_file
from fedcompress.files.container import open_container
from fedcompress.files.manifest import MAX_BYTES, parse_manifest
from fedcompress.pipeline.coding import share_budget
from fedcompress.pipeline.states import decode_state
from fedcompress.pipeline.updates import decode_update, encode_update
from fedcompress.types import Layout, Tensors, TensorSpec, state_digest
from fedcompress.wire import Header, Kind, Limits, pack, split_bundle, unpack
from tests.support import equal, lora_layout, normal, update_header

CONFIG = {"peft_type": "LORA", "r": 4, "modules_to_save": ["head"], "base_model_name_or_path": "/somewhere"}


def typed(dtype: str, **sizes: int) -> Layout:
    return Layout(tuple(replace(t, dtype=dtype) for t in lora_layout(**sizes).tensors))


def folder(path: Path, seed: int, dtype: str = "float32", **sizes: int) -> Path:
    layout = typed(dtype, **sizes)
    save_adapter(path, CONFIG, layout, normal(layout, seed))
    return path


def checkpoint(path: Path, seed: int, rows: int = 40) -> Path:
    generator = np.random.default_rng(seed)
    shapes = {"embed.weight": (rows, 8), "norm.weight": (8,), "scale": (), "layer.weight": (8, 16), "empty": (0, 4)}
    values = {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    values["half"] = generator.standard_normal((3, 5)).astype(np.float16)
    save_file(values, path, {"format": "pt", "made-by": "tests"})
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("entries", [1 << 20, 50])
def test_a_folder_comes_back_exactly(tmp_path: Path, dtype: str, entries: int) -> None:
    source = folder(tmp_path / "a", 0, dtype)
    facts = encode_file(source, tmp_path / "a.fcu", codec="none", part_entries=entries)
    assert facts["bytes"] == (tmp_path / "a.fcu").stat().st_size
    assert facts["captured"] == 1
    assert (facts["parts"] > 1) == (entries == 50)
    decode_file(tmp_path / "a.fcu", tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_difference_from_a_base(tmp_path: Path, dtype: str) -> None:
    new, old = folder(tmp_path / "new", 0, dtype), folder(tmp_path / "old", 1, dtype)
    encode_file(new, tmp_path / "d.fcu", base=old, codec="int(bits=8)")
    decode_file(tmp_path / "d.fcu", tmp_path / "again", base=old)
    wanted, found = load_adapter(new), load_adapter(tmp_path / "again")
    assert found.layout == wanted.layout
    for name, value in wanted.tensors.items():
        assert np.abs(value - found.tensors[name]).max() < 0.1
    with pytest.raises(errors.ConfigError, match=r"--base: missing: must be given"):
        decode_file(tmp_path / "d.fcu", tmp_path / "no")
    with pytest.raises(errors.MismatchError, match=r"--base: .*new: must be the base that the update was made from"):
        decode_file(tmp_path / "d.fcu", tmp_path / "no", base=new)
    assert not (tmp_path / "no").exists()


def test_a_base_may_have_another_dtype(tmp_path: Path) -> None:
    layout = typed("bfloat16")
    save_adapter(tmp_path / "half", CONFIG, layout, normal(layout, 1))
    exact = load_adapter(tmp_path / "half")
    save_adapter(tmp_path / "full", CONFIG, typed("float32"), {t.name: exact.tensors[t.name] for t in layout.tensors})
    encode_file(folder(tmp_path / "new", 0), tmp_path / "d.fcu", base=tmp_path / "full")
    decode_file(tmp_path / "d.fcu", tmp_path / "one", base=tmp_path / "full")
    decode_file(tmp_path / "d.fcu", tmp_path / "two", base=tmp_path / "half")
    assert equal(load_adapter(tmp_path / "one").tensors, load_adapter(tmp_path / "two").tensors)


def test_bases_that_do_not_fit(tmp_path: Path) -> None:
    source, wide = folder(tmp_path / "a", 0), folder(tmp_path / "wide", 0, width=32)
    with pytest.raises(errors.ConfigError, match=r"--base: .*wide: must have the same names and shapes: head.weight"):
        encode_file(source, tmp_path / "a.fcu", base=wide)
    with pytest.raises(errors.ConfigError, match=r"embed.weight is \(40, 8\), not absent"):
        encode_file(source, tmp_path / "a.fcu", base=checkpoint(tmp_path / "c.safetensors", 0))
    encode_file(source, tmp_path / "a.fcu")
    with pytest.raises(errors.ConfigError, match=r"--base: .*: must be left out"):
        decode_file(tmp_path / "a.fcu", tmp_path / "no", base=wide)


@pytest.mark.parametrize("entries", [1 << 20, 64, 7])
@pytest.mark.parametrize("with_base", [False, True])
def test_a_checkpoint_is_cut_into_parts(tmp_path: Path, entries: int, with_base: bool) -> None:
    source = checkpoint(tmp_path / "m.safetensors", 0)
    base = checkpoint(tmp_path / "b.safetensors", 1) if with_base else None
    facts = encode_file(source, tmp_path / "m.fcu", base=base, codec="int(bits=8)", part_entries=entries)
    decode_file(tmp_path / "m.fcu", tmp_path / "again.safetensors", base=base)
    wanted, found = load_file(source), load_file(tmp_path / "again.safetensors")
    assert {n: (v.shape, v.dtype) for n, v in wanted.items()} == {n: (v.shape, v.dtype) for n, v in found.items()}
    for name, value in wanted.items():
        assert np.allclose(value, found[name], atol=0.05), name
    with safe_open(tmp_path / "again.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "made-by": "tests"}
    assert facts["parts"] == len(open_container(tmp_path / "m.fcu").parts)
    assert (facts["parts"] > 1) == (entries < 1000)


def test_parts_are_consecutive_and_complete() -> None:
    shapes = [(3,), (10, 4), (), (2, 2), (0, 7), (5, 16)]
    layout = Layout(tuple(TensorSpec(name=f"t{i}", shape=s) for i, s in enumerate(shapes)))
    parts = split_layout(layout, 16)
    assert [sum(p.spec.numel for p in part) for part in parts] == [3, 16, 16, 13, *[16] * 5]
    assert all(len({p.spec.name for p in part}) == len(part) for part in parts)
    assert [(p.start, p.spec.shape) for part in parts for p in part if p.spec.name == "t1"] == [
        (0, (4, 4)),
        (4, (4, 4)),
        (8, (2, 4)),
    ]
    assert {p.whole for part in parts for p in part} == set(layout.tensors)
    assert split_layout(Layout(()), 16) == [[]]
    with pytest.raises(errors.ConfigError, match="entries in a row"):
        split_layout(Layout((TensorSpec(name="w", shape=(2, MAX_CHUNK_ENTRIES + 1)),)))


def test_budgets(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    low = generator.standard_normal((256, 4)) @ generator.standard_normal((4, 256))
    save_file({"a": low.astype(np.float32), "b": low.T.astype(np.float32)}, tmp_path / "m.safetensors")
    for entries in (1 << 20, 1 << 14):
        facts = encode_file(tmp_path / "m.safetensors", tmp_path / "m.fcu", budget="4KiB", part_entries=entries)
        sections = inspect_file(tmp_path / "m.fcu")["sections"]
        assert 0 < sum(s["bytes"] for s in sections) <= 4096 + facts["parts"]
        assert facts["codec"] == "transform(budget=4KiB)"
        assert facts["captured"] > 0.5
    spec = CodecSpec.parse("lora: transform(budget=1000B); head: transform(budget=2.0)")
    whole = lora_layout()
    part = Layout(whole.tensors[:1])
    assert str(share_budget(spec, whole, part)) == "lora_a,lora_b: transform(budget=250B); head: transform(budget=2.0)"
    assert share_budget(spec, whole, whole) == spec


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codec": "int8", "budget": "1KiB"}, "--budget: 1KiB: must not be given together with --codec"),
        ({"budget": "much"}, "--budget: much: must be a size"),
        ({"budget": "1,rank=2"}, "--budget: 1,rank=2: must be a size"),
        ({"codec": "zip"}, "--codec: zip: must be one of"),
        ({"codec": "head: int8"}, "needs a clause for group 'lora_a'"),
        ({"seed": -1}, "--seed: -1: must be from 0"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, object], words: str) -> None:
    source = folder(tmp_path / "a", 0)
    with pytest.raises(errors.ConfigError) as caught:
        encode_file(source, tmp_path / "a.fcu", **options)
    assert words in str(caught.value)
    assert not (tmp_path / "a.fcu").exists()


def test_what_cannot_be_encoded(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="must be a PEFT folder"):
        open_source(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(errors.StateError, match="does not parse"):
        open_source(tmp_path / "bad.safetensors")
    save_file({"w": np.ones(3, np.int32)}, tmp_path / "int.safetensors")
    with pytest.raises(errors.ConfigError, match=r"PATH.w.dtype: I32: one of"):
        open_source(tmp_path / "int.safetensors")
    save_file({"w": np.array([0.1, np.nan], np.float32)}, tmp_path / "nan.safetensors")
    with pytest.raises(errors.NonFiniteError, match="encode: w"):
        encode_file(tmp_path / "nan.safetensors", tmp_path / "nan.fcu")
    assert not list(tmp_path.glob("*.fcu*"))
    facts = inspect_file(tmp_path / "nan.safetensors")
    assert [n["code"] for n in facts["worth_dropping"]] == ["non-finite"]
    json.loads(json.dumps(facts, allow_nan=False))
    source = folder(tmp_path / "a", 0)
    (source / "adapter_config.json").write_text("[1]")
    with pytest.raises(errors.StateError, match="must be a JSON object"):
        open_source(source)


def test_outputs_suit_their_content(tmp_path: Path) -> None:
    encode_file(folder(tmp_path / "a", 0), tmp_path / "a.fcu")
    encode_file(checkpoint(tmp_path / "m.safetensors", 0), tmp_path / "m.fcu")
    with pytest.raises(errors.ConfigError, match=r"-o: .*must be a folder"):
        decode_file(tmp_path / "a.fcu", tmp_path / "m.safetensors")
    with pytest.raises(errors.ConfigError, match=r"-o: .*ends in \.safetensors"):
        decode_file(tmp_path / "m.fcu", tmp_path / "out")
    layout = lora_layout()
    data, _ = encode_update(
        normal(layout, 0), layout, CodecSpec.parse("int8"), update_header(layout, normal(layout, 0))
    )
    (tmp_path / "u.fcu").write_bytes(data)
    with pytest.raises(errors.ConfigError, match="an envelope of a run has no layout inside"):
        decode_file(tmp_path / "u.fcu", tmp_path / "out")


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", 0)
    for name in ("one", "two"):
        encode_file(source, tmp_path / name, seed=3)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_changed_files_are_refused(tmp_path: Path) -> None:
    encode_file(folder(tmp_path / "a", 0), tmp_path / "a.fcu", codec="int8", part_entries=100)
    data = (tmp_path / "a.fcu").read_bytes()
    pieces = split_bundle(data, limits())
    path = tmp_path / "bad.fcu"

    def refused(changed: bytes) -> Exception:
        path.write_bytes(changed)
        with pytest.raises(errors.WireError) as caught:
            decode_file(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return caught.value

    for size in (0, 1, 19, 20, 100, len(pieces[0]) + 5, len(data) - 1):
        assert isinstance(refused(data[:size]), errors.TruncatedError)
    assert isinstance(refused(data[:60] + bytes([data[60] ^ 1]) + data[61:]), errors.ChecksumError)
    assert "some are missing" in str(refused(b"".join(pieces[:-1])))
    assert "does not follow" in str(refused(b"".join([pieces[0], *pieces[:0:-1]])))
    encode_file(folder(tmp_path / "b", 1), tmp_path / "b.fcu", codec="int8", part_entries=100)
    others = split_bundle((tmp_path / "b.fcu").read_bytes(), limits())
    assert "does not follow" in str(refused(b"".join([*pieces[:2], *others[2:]])))
    refused(data + b"x")


def limits() -> Limits:
    return Limits(max_body=1 << 30)


def file_header(layout: Layout, values: Tensors) -> Header:
    return update_header(
        layout,
        values,
        kind=Kind.FILE,
        run="",
        site="",
        base_digest=b"",
        result_digest=state_digest(layout, values),
    )


def section(**changes: object) -> bytes:
    entries: dict[str, object] = {
        "format": "safetensors",
        "layout": [["w", [4], "float32", "other"]],
        "part": 0,
        "parts": 1,
        "after": "",
    }
    entries |= changes
    return b"\x01" + zlib.compress(json.dumps({k: v for k, v in entries.items() if v is not None}).encode())


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\x02",
        b"\x01",
        b"\x01not zlib",
        section() + b"x",
        section()[:-1],
        b"\x01" + zlib.compress(b"[" * 100_000),
        b"\x01" + zlib.compress(b"[]"),
        b"\x01" + zlib.compress(b"null"),
        *(section(**{key: None}) for key in ("format", "layout", "part", "parts", "after")),
        *(section(format=v) for v in ("zip", 1, [])),
        *(section(layout=v) for v in ("", {}, [["w", [-1], "float32", "other"]], [["w", [4], "float64", "other"]])),
        *(section(part=v) for v in (1, -1, True, "0", 0.0)),
        section(parts=0),
        section(parts=100_001),
        *(section(after=v) for v in ("x", 1, "AB" * 32)),
        *(
            section(rows=v)
            for v in ([], "w", {"v": [0, 4]}, {"w": [0]}, {"w": ["0", 4]}, {"w": [1, 4]}, {"w": [-1, 9]})
        ),
        section(rows={"w": [0, 1 << 50]}),
        section(codec=1),
        section(adapter_config=[]),
        section(metadata={"a": 1}),
        section(metadata=[]),
        section(metadata={"a": "\ud800"}),
        section(layout=[["__metadata__", [4], "float32", "other"]]),
    ],
)
def test_malformed_manifests(bad: bytes) -> None:
    with pytest.raises(errors.PayloadError, match="manifest"):
        parse_manifest(bad)


def test_manifests_are_bounded() -> None:
    bomb = b"\x01" + zlib.compress(b" " * (8 * MAX_BYTES), 1)
    tracemalloc.start()
    with pytest.raises(errors.LimitError, match="manifest"):
        parse_manifest(bomb)
    with pytest.raises(errors.LimitError, match=r"manifest.layout: .* at most"):
        parse_manifest(section(layout=[["w", [MAX_CHUNK_ENTRIES + 1], "float32", "other"]]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MAX_BYTES


def test_changed_bytes_with_a_right_checksum(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", 0)
    encode_file(source, tmp_path / "a.fcu", codec="int(bits=4)")
    envelope = unpack((tmp_path / "a.fcu").read_bytes(), limits())
    text = bytearray(zlib.decompress(envelope.sections[0][1:]))
    generator = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(text)
        changed[generator.integers(len(text))] = generator.integers(32, 127)
        packed = b"\x01" + zlib.compress(bytes(changed))
        (tmp_path / "x.fcu").write_bytes(pack(envelope.header, (packed, *envelope.sections[1:])))
        try:
            inspect_file(tmp_path / "x.fcu", reference=source)
            decode_file(tmp_path / "x.fcu", tmp_path / "out")
        except errors.FedCompressError:
            pass


def test_parts_that_contradict_themselves(tmp_path: Path) -> None:
    layout = Layout((TensorSpec(name="w", shape=(4,)),))
    values = {"w": np.zeros(4, np.float32)}
    header, path = file_header(layout, values), tmp_path / "x.fcu"
    other = Layout((TensorSpec(name="v", shape=(4,)),))
    body = (b"\x02" + b"\x00" * 16,)
    cases = [
        (pack(header, ()), "manifest: absent"),
        (pack(file_header(other, {"v": values["w"]}), (section(), *body)), "not that of the manifest's layout"),
        (pack(header, (section(format="peft"), *body)), "must be there for a folder"),
        (pack(header, (section(adapter_config={}), *body)), "must be there for a folder"),
        (pack(header, (section(format="peft", adapter_config={}), *body)), "header.adapter_digest"),
        (pack(header, (section(rows={"w": [0, 8]}), *body)), "rows are missing"),
        (pack(header, (section(rows={"w": [4, 8]}), *body)), "rows are missing"),
        (pack(header, (section(),)), "sections: 0"),
        (pack(replace(header, codec="zip"), (section(), *body)), r"header.codec"),
    ]
    for data, words in cases:
        path.write_bytes(data)
        with pytest.raises(errors.WireError, match=words):
            decode_file(path, tmp_path / "out.safetensors")
    path.write_bytes(pack(replace(header, result_digest=b"r" * 32), (section(), *body)))
    with pytest.raises(errors.MismatchError, match="result_digest"):
        decode_file(path, tmp_path / "out.safetensors")
    path.write_bytes(pack(header, (section(), *body)))
    decode_file(path, tmp_path / "out.safetensors")


def test_the_network_does_not_take_files(tmp_path: Path) -> None:
    encode_file(folder(tmp_path / "a", 0), tmp_path / "a.fcu", codec="none")
    data, layout = (tmp_path / "a.fcu").read_bytes(), load_adapter(tmp_path / "a").layout
    with pytest.raises(errors.HeaderError, match=r"header.kind: FILE"):
        decode_update(data, layout)
    with pytest.raises(errors.HeaderError, match=r"header.kind: FILE"):
        decode_state(data, layout, None)


def test_stock_peft_reads_the_folder(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = torch.nn.Linear(6, 5), torch.nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.first(x))

    def fresh() -> Net:
        torch.manual_seed(0)
        return Net()

    model = peft.get_peft_model(fresh(), peft.LoraConfig(r=2, target_modules=["first"], modules_to_save=["head"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    model.save_pretrained(tmp_path / "a")
    encode_file(tmp_path / "a", tmp_path / "a.fcu", codec="none")
    decode_file(tmp_path / "a.fcu", tmp_path / "again")
    loaded = peft.PeftModel.from_pretrained(fresh(), tmp_path / "again")
    x = torch.randn(3, 6)
    assert torch.equal(model.eval()(x), loaded.eval()(x))
    assert inspect_file(tmp_path / "a")["worth_dropping"] == []


def test_inspection_of_a_file(tmp_path: Path) -> None:
    new, old = folder(tmp_path / "new", 0), folder(tmp_path / "old", 1)
    codec = "lora_a,lora_b: topk(density=0.05)|ternary; head: int(bits=4)"
    encoded = encode_file(new, tmp_path / "d.fcu", base=old, codec=codec)
    facts = inspect_file(tmp_path / "d.fcu")
    assert (facts["kind"], facts["codec"], facts["format"], facts["difference"]) == ("FILE", codec, "peft", True)
    assert [s["clause"] for s in facts["sections"]] == codec.split("; ")
    assert [s["parameters"] for s in facts["sections"]] == [384, 75]
    assert facts["manifest_bytes"] + sum(s["bytes"] for s in facts["sections"]) == sum(facts["section_bytes"])
    assert facts["ratio_fp32"] == 4 * facts["parameters"] / facts["bytes"]
    assert facts["bits_per_parameter"] == 8 * facts["bytes"] / facts["parameters"]
    assert "captured" not in facts
    facts = inspect_file(tmp_path / "d.fcu", reference=new, base=old)
    x, decoded = {}, {}
    decode_file(tmp_path / "d.fcu", tmp_path / "again", base=old)
    for name, value in load_adapter(new).tensors.items():
        before = load_adapter(old).tensors[name]
        x[name], decoded[name] = value - before, load_adapter(tmp_path / "again").tensors[name] - before
    lost = sum(float(((x[n] - decoded[n]) ** 2).sum()) for n in x)
    assert math.isclose(facts["captured"], 1 - lost / sum(float((v**2).sum()) for v in x.values()), rel_tol=1e-4)
    assert math.isclose(facts["captured"], encoded["captured"])
    assert set(facts["captured_by_group"]) == {"lora_a", "lora_b", "head"}
    assert facts["captured_by_group"]["head"] > 0.9
    losses = [row["share_of_loss"] for row in facts["worst_tensors"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 5
    with pytest.raises(errors.MismatchError, match="--base"):
        inspect_file(tmp_path / "d.fcu", reference=new, base=new)
    with pytest.raises(errors.ConfigError, match="--base: missing"):
        inspect_file(tmp_path / "d.fcu", reference=new)
    with pytest.raises(errors.ConfigError, match=r"--reference: .*same names and shapes"):
        inspect_file(tmp_path / "d.fcu", reference=folder(tmp_path / "wide", 0, width=32), base=old)


def test_distortion_of_an_update_of_a_run(tmp_path: Path) -> None:
    new, old = load_adapter(folder(tmp_path / "new", 0)), load_adapter(folder(tmp_path / "old", 1))
    change = {n: v - old.tensors[n] for n, v in new.tensors.items()}
    header = update_header(new.layout, old.tensors)
    data, decoded = encode_update(change, new.layout, CodecSpec.parse("int4"), header)
    (tmp_path / "u.fcu").write_bytes(data)
    facts = inspect_file(tmp_path / "u.fcu", reference=tmp_path / "new", base=tmp_path / "old")
    lost = sum(float(((change[n] - decoded[n]) ** 2).sum()) for n in change)
    assert math.isclose(facts["captured"], 1 - lost / sum(float((v**2).sum()) for v in change.values()), rel_tol=1e-5)
    with pytest.raises(errors.MismatchError, match="--base"):
        inspect_file(tmp_path / "u.fcu", reference=tmp_path / "new", base=tmp_path / "new")
    with pytest.raises(errors.MismatchError, match="layout_digest"):
        inspect_file(tmp_path / "u.fcu", reference=folder(tmp_path / "wide", 0, width=32))
    with pytest.raises(errors.ConfigError, match="--reference"):
        inspect_file(tmp_path / "new", reference=tmp_path / "old")


def test_statistics_of_groups(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = {
        "x.lora_A.weight": generator.standard_normal((64, 512)),
        "x.lora_B.weight": generator.laplace(size=(512, 64)),
    }
    save_file({n: v.astype(np.float32) for n, v in values.items()}, tmp_path / "m.safetensors")
    groups = inspect_file(tmp_path / "m.safetensors")["groups"]
    assert abs(groups["lora_a"]["kurtosis"] - 3) < 0.2
    assert abs(groups["lora_b"]["kurtosis"] - 6) < 1
    assert math.isclose(groups["lora_a"]["norm"], np.linalg.norm(values["x.lora_A.weight"]), rel_tol=1e-6)
    assert groups["lora_a"]["ternary_bound_bytes"] == math.ceil(0.336397 * 64 * 512 / 8)
    facts = inspect_file(tmp_path / "m.safetensors")
    assert (
        facts["state_digest"]
        == state_digest(
            open_source(tmp_path / "m.safetensors").layout, {n: v.astype(np.float32) for n, v in values.items()}
        ).hex()
    )


def test_what_is_worth_dropping(tmp_path: Path) -> None:
    ones = np.ones((4, 64), np.float32)
    noise = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    save_file(
        {
            "m.x.lora_A.weight": noise,
            "m.x.lora_B.weight": 0 * ones,
            "m.head.weight": noise,
            "m.embed.weight": np.tile(noise, (16, 1)),
            "m.norm.weight": ones,
        },
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"modules_to_save": ["head"], "bias": "none"}))
    notes = {n["code"]: n for n in inspect_file(tmp_path)["worth_dropping"]}
    assert set(notes) == {"zeros", "bf16-in-fp32", "not-trainable", "large-heads", "no-prefix"}
    assert notes["zeros"]["examples"] == ["m.x.lora_B.weight"]
    assert notes["bf16-in-fp32"]["examples"] == ["m.norm.weight"]
    assert notes["not-trainable"]["examples"] == ["m.embed.weight", "m.norm.weight"]
    assert notes["not-trainable"]["bytes"] == 17 * 1024
    assert "90 % of the bytes" in notes["large-heads"]["text"]


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = checkpoint(tmp_path / "m.safetensors", 0)
    encode_file(source, tmp_path / "m.fcu", part_entries=64, progress=lambda *x: seen.append(x))
    total = layout_of_slices([p for part in split_layout(open_source(source).layout, 1 << 20) for p in part]).numel
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("codec", ["none", "topk(density=0.05)|ternary"])
def test_memory_is_bounded_by_a_part(tmp_path: Path, codec: str) -> None:
    generator = np.random.default_rng(0)
    values = {f"w{i}": generator.standard_normal((1024, 2048), np.float32) for i in range(20)}
    values["large"] = generator.standard_normal((10240, 1024), np.float32)
    save_file(values, tmp_path / "m.safetensors")
    values.clear()
    size, part = (tmp_path / "m.safetensors").stat().st_size, 1 << 20
    assert size > 200e6
    tracemalloc.start()
    encode_file(tmp_path / "m.safetensors", tmp_path / "m.fcu", codec=codec, part_entries=part)
    decode_file(tmp_path / "m.fcu", tmp_path / "again.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 4 * part < size / 2
    assert (tmp_path / "again.safetensors").stat().st_size == size
    if codec == "none":
        with (
            safe_open(tmp_path / "m.safetensors", "numpy") as old,
            safe_open(tmp_path / "again.safetensors", "numpy") as new,
        ):
            assert all(np.array_equal(old.get_tensor(n), new.get_tensor(n)) for n in old.keys())  # noqa: SIM118
