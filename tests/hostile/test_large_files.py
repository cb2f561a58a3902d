"""Files of a few bytes that ask for much memory, disk or time are refused before any of it is spent.

Each is well-formed and decodes rightly with ``allow_large``: only its size is hostile.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedcompress.chunks import TensorSlice, layout_of_slices
from fedcompress.codecs import CodecSpec
from fedcompress.codecs.codes.seeds import encode_pairs
from fedcompress.codecs.cost import PER_ENTRY, estimate_work
from fedcompress.errors import ConfigError, LayoutError, LimitError
from fedcompress.files import decode_file, inspect_file
from fedcompress.files.container import open_container
from fedcompress.files.encode import encode_file
from fedcompress.files.manifest import Manifest
from fedcompress.types import Layout, TensorSpec
from fedcompress.wire import Header, Kind, digest_of, pack

ZEROS = bytes([2]) + bytes(4)  # a section of the transform code with a step of 0: whatever the shapes, all is 0
MIB = 1 << 20


def write_file(path: Path, codec: str, parts: Sequence[Sequence[TensorSlice]], section: bytes = ZEROS) -> Path:
    """Write a file of parts with one section each, as anybody may."""
    after, data = "", b""
    for number, pieces in enumerate(parts):
        manifest = Manifest(
            format="safetensors", pieces=list(pieces), part=number, parts=len(parts), after=after, codec=codec
        )
        digest = layout_of_slices(list(pieces)).digest
        header = Header(
            kind=Kind.FILE, run="", round=0, version=0, codec=codec, layout_digest=digest, result_digest=digest
        )
        envelope = pack(header, (manifest.to_section(), section))
        data += envelope
        after = digest_of(envelope).hex()
    path.write_bytes(data)
    return path


def pieces_of(rows: int, columns: int, each: int) -> list[list[TensorSlice]]:
    """Cut one matrix into parts of so many rows."""
    return [
        [TensorSlice(spec=TensorSpec(name="w", shape=(each, columns)), start=start, total=rows)]
        for start in range(0, rows, each)
    ]


def refuse(path: Path, words: str, out: Path) -> None:
    """Check that every command which opens a file refuses this one, and that nothing is written."""
    for command in (
        lambda: open_container(path),
        lambda: inspect_file(path),
        lambda: decode_file(path, out),
    ):
        with pytest.raises(LimitError, match=words):
            command()
    assert not out.exists()
    assert not list(out.parent.glob(f"{out.name}*"))


def test_a_file_that_decodes_to_far_more_than_it_is(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.fcu", "transform(budget=0.25)", pieces_of(4096 * 16, 4096, 1024))
    assert path.stat().st_size < 32 << 10
    refuse(path, r"bytes of values: a file of \d+ bytes may decode to at most", tmp_path / "x.safetensors")
    assert open_container(path, allow_large=True).layout.numel == 1 << 28


def test_what_is_that_large_and_ones_own_is_taken(tmp_path: Path) -> None:
    """Zeros are the smallest file that `encode` writes; with the flag they are decoded."""
    save_file({"w": np.zeros((4096, 8192), np.float32)}, tmp_path / "x.safetensors")
    encode_file(tmp_path / "x.safetensors", tmp_path / "x.fcu", codec="transform(budget=0.25)")
    with pytest.raises(LimitError, match="--allow-large"):
        decode_file(tmp_path / "x.fcu", tmp_path / "y.safetensors")
    assert decode_file(tmp_path / "x.fcu", tmp_path / "y.safetensors", allow_large=True)["parameters"] == 1 << 25


@pytest.mark.parametrize(
    ("codec", "terms"),
    [
        ("seeds(count=65536)", 65536),
        ("dct(columns=1048576)", 4096),
        ("subspace(rank=4096)", 4096),
        ("transform(budget=0.25,rank=4096)", 1024),
    ],
)
def test_a_file_that_decodes_for_hours(codec: str, terms: int, tmp_path: Path) -> None:
    """What a section may hold is counted, not what this one holds: it is refused unread."""
    shape = (1024, 4096)
    layout = Layout((TensorSpec(name="w", shape=shape),))
    assert estimate_work(CodecSpec.parse(codec), layout) == (terms + PER_ENTRY) * 1024 * 4096
    one_part = [TensorSlice(spec=layout.tensors[0])]
    parts = [[TensorSlice(spec=TensorSpec(name=f"w{i}", shape=shape))] for i in range(60)]
    path = write_file(tmp_path / "x.fcu", codec, parts if terms < 65536 else [one_part])
    refuse(path, "operations|bytes of values", tmp_path / "x.safetensors")


def test_seeds_of_a_zeroth_order_optimizer_are_counted(tmp_path: Path) -> None:
    pairs = encode_pairs([(seed, 0.5) for seed in range(60_000)])
    part = [TensorSlice(spec=TensorSpec(name="w", shape=(2048, 2048)))]
    path = write_file(tmp_path / "x.fcu", "seeds(count=65536)", [part], bytes([2]) + pairs)
    refuse(path, "operations", tmp_path / "x.safetensors")
    small = [TensorSlice(spec=TensorSpec(name="w", shape=(8,)))]
    path = write_file(tmp_path / "small.fcu", "seeds(count=65536)", [small], bytes([2]) + pairs)
    assert open_container(path).layout.numel == 8, "a list of seeds for few entries is quickly decoded"


@pytest.mark.parametrize(
    "fill",
    [
        lambda size: {"metadata": {"a": "x" * size}},
        lambda size: {"layout": [[f"{'w' * 200}{i}", [1], "float32", "other"] for i in range(size // 230)]},
        lambda size: {"adapter_config": {"a": [[]] * (size // 4)}},
    ],
)
def test_manifests_that_inflate(fill: Callable[[int], dict[str, object]], tmp_path: Path) -> None:
    """The JSON of all manifests together is bounded by the size of the file."""
    plain = {"format": "safetensors", "layout": [["w", [2], "float32", "other"]], "part": 0, "parts": 1, "after": ""}
    text = json.dumps({**plain, **fill(15 * MIB)}).encode()
    digest = bytes(32)
    header = Header(
        kind=Kind.FILE, run="", round=0, version=0, codec="none", layout_digest=digest, result_digest=digest
    )
    path = tmp_path / "x.fcu"
    path.write_bytes(pack(header, (bytes([1]) + zlib.compress(text, 9), ZEROS)))
    assert path.stat().st_size < 250_000
    refuse(path, "manifest: more than", tmp_path / "x.safetensors")


def test_many_small_manifests_share_one_bound(tmp_path: Path) -> None:
    name = "w" * 2000
    specs = [TensorSpec(name=f"{name}{i}", shape=(1,)) for i in range(1000)]
    parts = [[TensorSlice(spec=spec) for spec in specs[i : i + 500]] for i in (0, 500)] * 4
    with pytest.raises(LimitError, match="manifest: more than"):
        open_container(write_file(tmp_path / "x.fcu", "none", parts))


@pytest.mark.parametrize("dimensions", [33, 64, 65, 1000])
def test_tensors_of_more_dimensions_than_anybody_has(dimensions: int) -> None:
    """numpy takes 64 at most, and raises errors of its own."""
    with pytest.raises(ConfigError, match=f"{dimensions} dimensions: at most 32"):
        TensorSpec(name="w", shape=(1,) * dimensions)
    with pytest.raises(LayoutError, match="at most 32"):
        Layout.from_json(json.dumps([["w", [1] * dimensions, "float32", "other"]]))


def test_real_files_are_far_from_every_bound(tmp_path: Path) -> None:
    """An adapter of a few layers, at the default and at the smallest budget that anybody uses."""
    values = {f"layers.{i}.w": np.random.default_rng(i).normal(size=(64, 512)).astype(np.float32) for i in range(16)}
    save_file(values, tmp_path / "x.safetensors")
    for codec in ("lora-transform", "transform(budget=0.02)", "seeds(count=64)", "lora-ternary"):
        encode_file(tmp_path / "x.safetensors", tmp_path / "x.fcu", codec=codec, base=None)
        assert decode_file(tmp_path / "x.fcu", tmp_path / "y.safetensors")["parameters"] == 16 * 64 * 512
