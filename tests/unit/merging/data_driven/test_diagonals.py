"""Diagonal Fisher information against its closed form."""

import numpy as np
import pytest
import torch

from fedcompress.errors import ConfigError
from fedcompress.merging.data_driven import collect_fisher

CLASSES, WIDTH = 3, 4


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, CLASSES)


def examples(count: int = 6) -> list[torch.Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return [torch.randn(WIDTH, generator=drawn) for _ in range(count)]


def logs(model: torch.nn.Module, example: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(model(example), 0)


def closed_form(model: torch.nn.Linear) -> dict[str, np.ndarray]:
    """For a softmax of a linear map: E (1[k=y] - p_k)^2 = p_k (1 - p_k), times x_j^2."""
    weight = np.zeros((CLASSES, WIDTH))
    bias = np.zeros(CLASSES)
    for x in examples():
        p = torch.softmax(model(x), 0).detach().double().numpy()
        weight += (p * (1 - p))[:, None] * x.double().numpy() ** 2
        bias += p * (1 - p)
    return {"weight": weight / 6, "bias": bias / 6}


def test_the_expectation_over_all_labels_is_the_closed_form() -> None:
    model = linear().train()
    found = collect_fisher(model, examples(), logs)
    assert model.training
    for name, expected in closed_form(model).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
        assert found[name].dtype == np.float32


def test_draws_come_near_it_and_depend_on_the_seed_alone() -> None:
    model = linear()
    first, again = (collect_fisher(model, examples(), logs, samples=400, seed=3) for _ in range(2))
    for name, expected in closed_form(model).items():
        np.testing.assert_allclose(first[name], expected, rtol=0.2, atol=0.02)
        np.testing.assert_array_equal(first[name], again[name])
    other = collect_fisher(model, examples(), logs, samples=1, seed=4)
    assert not np.array_equal(other["weight"], collect_fisher(model, examples(), logs, samples=1, seed=5)["weight"])


def test_frozen_and_unused_parameters() -> None:
    model = linear()
    model.bias.requires_grad_(False)
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(2)))
    found = collect_fisher(model, examples(), logs)
    assert set(found) == {"weight", "idle"}
    assert not found["idle"].any()
    assert model.weight.grad is None


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        collect_fisher(linear(), [], logs)
    with pytest.raises(ConfigError, match="requires a gradient"):
        collect_fisher(linear().requires_grad_(False), examples(), logs)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        collect_fisher(linear(), [torch.full((WIDTH,), float("nan"))], logs)
