"""Models whose own weights are trained: what is trained in a round, and what it is set to at the round's start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcompress.adapters.base_model import BaseModel, build_base
from fedcompress.adapters.full import Layers, draw_round_layers
from fedcompress.adapters.full.attach import BASIS, COEFFICIENTS, FullWeightsModel, attach_weights, find_layers
from fedcompress.adapters.full.base_files import BaseWeights
from fedcompress.chunks import TensorSlice
from fedcompress.config.objective import CausalLM
from fedcompress.numerics.seeded_bases import basis_of, shared_seed
from fedcompress.storage.tensor_file import TensorFile, write_tensor_file
from fedcompress.types import Tensors, TensorSpec
from tests.support import normal
from tests.unit.adapters import sites

pytestmark = pytest.mark.filterwarnings("ignore")
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites.llama(tmp_path_factory.mktemp("base") / "llama")


def attach(model: Path, weights: dict[str, Any], **options: Any) -> FullWeightsModel:
    module = build_base(BaseModel(path=model), CausalLM())
    return attach_weights(module, {"weights": weights}, BaseWeights(model), **options)


def stored(model: Path, name: str) -> np.ndarray[Any, Any]:
    from safetensors.numpy import load_file

    return load_file(model / "model.safetensors")[name]


def test_of_drawn_layers_nothing_else_is_trained(model: Path) -> None:
    for round_ in range(1, 6):
        attached = attach(model, {"name": "layers", "k": 1, "always": ["lm_head"]}, seed=3, round_=round_)
        assert find_layers(attached.model) == ["model.layers.0", "model.layers.1"]
        (drawn,) = draw_round_layers(Layers(k=1), 2, seed=3, round_=round_)
        trained = {n for n, p in attached.model.named_parameters() if p.requires_grad}
        assert trained == set(attached.parameters)
        assert {n.split(".")[2] for n in trained if "layers" in n} == {str(drawn)}
        assert "lm_head.weight" in trained
        assert set(attached.frozen) == set(attached.layout.by_name) - trained
        assert attached.one_by_one


def test_a_round_starts_at_base_plus_state_in_memory_or_on_disk(model: Path, tmp_path: Path) -> None:
    attached = attach(model, {"name": "full"})
    state: Tensors = normal(attached.layout, 0)
    write_tensor_file(tmp_path / "state", [state])
    start = attached.values(state, "run", 1)
    assert list(start) == list(attached.parameters)
    assert len(start) == len(attached.layout.tensors)
    for values in (start, attached.values(TensorFile(tmp_path / "state", attached.layout), "run", 1)):
        assert np.array_equal(values[Q], stored(model, Q) + state[Q])
        rows = TensorSlice(spec=TensorSpec(name=Q, shape=(5, 32)), start=3, total=32)
        assert np.array_equal(values.read(rows), (stored(model, Q) + state[Q])[3:8])


@pytest.mark.parametrize("basis", ["random", "dct"])
def test_a_subspace_has_the_bases_of_its_round_and_coefficients_of_zero(model: Path, basis: str) -> None:
    attached = attach(model, {"name": "subspace", "rank": 4, "basis": basis})
    names = {n.removesuffix(COEFFICIENTS) for n in attached.parameters}
    assert names == set(attached.layout.by_name)
    assert set(attached.frozen) == names | {n + BASIS for n in names}
    state = normal(attached.layout, 1)
    one, two = (attached.values(state, "run", round_) for round_ in (1, 2))
    assert one[Q + COEFFICIENTS].shape == (32, 4)
    assert not one[Q + COEFFICIENTS].any()
    assert np.array_equal(one[Q + BASIS], basis_of(basis, 32, 4, shared_seed("run", 1), Q))
    assert not np.array_equal(one[Q + BASIS], two[Q + BASIS])
    assert np.array_equal(one[Q], two[Q])
    assert np.array_equal(one[Q], stored(model, Q) + state[Q])


def test_only_coefficients_of_a_subspace_are_trained(model: Path) -> None:
    attached = attach(
        model, {"name": "subspace", "rank": 2, "target_modules": ["q_proj", "v_proj"]}, freeze=("layers.1",)
    )
    trained = [n for n, p in attached.model.named_parameters() if p.requires_grad]
    assert len(trained) == len(attached.parameters) == 2
    assert all("lora_B" in n and "layers.0" in n for n in trained)
