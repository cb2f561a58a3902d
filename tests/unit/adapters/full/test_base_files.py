"""A base's safetensors files, read by the slice under the names of a model's parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedcompress.adapters.full.base_files import BaseWeights
from fedcompress.chunks import TensorSlice
from fedcompress.errors import ConfigError, StateError
from fedcompress.types import Array, TensorSpec


def matrix(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, as large models have them; one has metadata."""
    first = {"layers.0.q.weight": matrix(6, 4), "layers.0.norm.weight": np.arange(4, dtype=np.float32)}
    second = {"layers.1.q.weight": matrix(6, 4, 1).astype(np.float16), "ids": np.arange(5)}
    save_file(first, tmp_path / "model-00001-of-00002.safetensors", {"format": "pt"})
    save_file(second, tmp_path / "model-00002-of-00002.safetensors")
    return tmp_path


def rows(name: str, start: int, stop: int, shape: tuple[int, ...]) -> TensorSlice:
    spec = TensorSpec(name=name, shape=(stop - start, *shape[1:]))
    return TensorSlice(spec=spec, start=start, total=shape[0])


def test_whole_tensors_and_rows_of_them(folder: Path) -> None:
    base = BaseWeights(folder)
    assert set(base.entries) == {"layers.0.q.weight", "layers.0.norm.weight", "layers.1.q.weight", "ids"}
    whole = base.read(TensorSlice(spec=TensorSpec(name="layers.0.q.weight", shape=(6, 4))))
    assert np.array_equal(whole, matrix(6, 4))
    assert np.array_equal(base.read(rows("layers.0.q.weight", 2, 5, (6, 4))), matrix(6, 4)[2:5])
    half = base.read(rows("layers.1.q.weight", 4, 6, (6, 4)))
    assert half.dtype == np.float32
    assert np.array_equal(half, matrix(6, 4, 1).astype(np.float16)[4:].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "shape", "key"),
    [
        ("layers.0.q.weight", (6, 4), "layers.0.q.weight"),
        ("model.layers.0.q.weight", (6, 4), "layers.0.q.weight"),
        ("base.model.layers.0.q.weight", (6, 4), "layers.0.q.weight"),
        ("0.q.weight", (6, 4), "layers.0.q.weight"),
        ("encoder.0.norm.weight", (4,), "layers.0.norm.weight"),
        ("a.b.c.layers.0.q.weight", (6, 4), ""),
        ("layers.0.q.weight", (4, 6), ""),
        ("classifier.weight", (2, 4), ""),
    ],
)
def test_names_in_the_model_and_in_the_files(folder: Path, name: str, shape: tuple[int, ...], key: str) -> None:
    base = BaseWeights(folder)
    assert base.find_key(name, shape) == key
    values = base.read(TensorSlice(spec=TensorSpec(name=name, shape=shape)))
    assert values.shape == shape
    assert values.any() == bool(key)  # what is not in the files begins at zero


def test_values_that_cannot_be_trained(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.ids: I64: must be one of .*: its values are trained"):
        BaseWeights(folder).read(TensorSlice(spec=TensorSpec(name="ids", shape=(5,))))


def test_folders_that_are_no_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.path: .*must have weights as safetensors"):
        _ = BaseWeights(tmp_path).entries
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 32)
    with pytest.raises(StateError, match="does not parse"):
        _ = BaseWeights(tmp_path).entries


def test_a_file_that_has_become_shorter(folder: Path) -> None:
    base = BaseWeights(folder)
    entry = base.entries["layers.0.q.weight"]
    assert entry.data(4, 8) == matrix(6, 4).tobytes()[4:12]
    assert entry.data(90) == matrix(6, 4).tobytes()[90:]
    with entry.file.open("r+b") as file:
        file.truncate(entry.offset + 40)
    with pytest.raises(StateError, match="40 bytes: must be 96"):
        entry.data()
