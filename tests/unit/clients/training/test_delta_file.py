"""What a rank hands over: trained minus published, or why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.training.delta_file import write_delta
from clients.training.job import DELTA
from fedcompress.errors import NonFiniteError
from fedcompress.storage.tensor_file import open_tensor_file
from tests.support import lora_layout, normal

LAYOUT = lora_layout()
START = normal(LAYOUT, 1)


@dataclass
class Engine:
    """What writing needs of an engine; says what was read."""

    tensors: dict[str, torch.Tensor]
    device: str = "cpu"
    read: list[str] = field(default_factory=list)

    def stream(self) -> Iterator[tuple[str, Any]]:
        for name, tensor in self.tensors.items():
            self.read.append(name)
            yield name, tensor


def trained(change: float = 0.5) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) + change for name, value in reversed(START.items())}


def test_in_the_order_of_the_layout(tmp_path: Path) -> None:
    tensors = trained()
    assert write_delta(Engine(tensors), START, LAYOUT, tmp_path) is True
    delta = open_tensor_file(tmp_path / DELTA, LAYOUT)
    assert list(delta) == [t.name for t in LAYOUT.tensors]
    assert all(np.array_equal(delta[n], tensors[n].numpy() - START[n]) for n in delta)


def test_nothing_has_changed(tmp_path: Path) -> None:
    assert write_delta(Engine(trained(0.0)), START, LAYOUT, tmp_path) is False


def test_a_weight_that_is_not_finite_is_named_and_all_are_gathered(tmp_path: Path) -> None:
    """Ranks gather together: who fails reads to the end, or the others would wait."""
    engine = Engine(trained())
    bad = next(iter(engine.tensors))
    engine.tensors[bad].view(-1)[0] = torch.nan
    with pytest.raises(NonFiniteError, match=f"trained: {bad}: contains NaN"):
        write_delta(engine, START, LAYOUT, tmp_path)
    assert engine.read == list(engine.tensors)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    engine = Engine(trained())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_delta(engine, START, LAYOUT, tmp_path / "file" / "out")
    assert engine.read == list(engine.tensors)


def test_other_ranks_take_part_only() -> None:
    engine = Engine(trained())
    assert write_delta(engine, START, LAYOUT, None) is False
    assert engine.read == list(engine.tensors)
