"""Expert Merging on a model of a few tokens, and how chunks are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedcompress.errors import ConfigError
from fedcompress.merging.data_driven import (
    Expert,
    Factored,
    alignment_loss,
    chunk_counts,
    combine_adapters,
    compute_importance,
    expert,
)
from fedcompress.merging.data_driven.chunks import frobenius_norm

WIDTH, TOKENS, RANK = 8, 8, 2


class Toy(torch.nn.Module):
    """Two linear layers on token embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(TOKENS, WIDTH)
        self.up, self.out = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, TOKENS)
        self.drop = torch.nn.Dropout(0.5)
        with torch.no_grad():
            self.table.weight[:] = torch.eye(TOKENS)  # so that adapters can see tokens apart

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(torch.tanh(self.up(self.table(ids)))))


def setup() -> tuple[Toy, list[dict[str, tuple[np.ndarray, np.ndarray]]], list[list[torch.Tensor]]]:
    """Site 0 has tokens 0 to 3 and an adapter that sees them alone; site 1 the others."""
    torch.manual_seed(0)
    draw, model = np.random.default_rng(0), Toy()
    adapters = []
    for site in (0, 1):
        a = np.zeros((RANK, WIDTH), np.float32)
        a[:, 4 * site : 4 * site + 4] = draw.standard_normal((RANK, 4))
        adapters.append({"up": (a, 2 * draw.standard_normal((WIDTH, RANK)).astype(np.float32))})
    batches = [[torch.randint(4 * s, 4 * s + 4, (2, 6)) for _ in range(3)] for s in (0, 1)]
    return model, adapters, batches


def test_learned_coefficients_beat_equal_ones() -> None:
    """Each adapter is of use for its own tokens and does nothing to the others', so that 1 is right for both."""
    model, adapters, batches = setup()
    equal = {"up": np.full((2, 1), 0.5)}
    found = expert(model, adapters, batches, [1.0, 1.0], scaling=0.5)
    before, after = (alignment_loss(model, adapters, batches, [1.0, 1.0], c, 0.5) for c in (equal, found.coefficients))
    assert before > 0.05
    assert after < 0.05 * before
    assert np.allclose(found.coefficients["up"], 1, atol=0.15)
    assert len(found.losses) == 100
    assert found.losses[-1] < 0.1 * found.losses[0]
    assert alignment_loss(model, adapters, batches, [1.0, 1.0], {"up": np.ones((2, 1))}, 0.5) == pytest.approx(
        0, abs=1e-9
    )


def test_only_coefficients_learn_and_the_model_is_left_as_it_was() -> None:
    model, adapters, batches = setup()
    tensors = [{"up": tuple(torch.tensor(f, requires_grad=True) for f in own["up"])} for own in adapters]
    model.train()
    model.out.bias.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = batches[0][0]
    plain = model.eval()(ids)
    model.train()
    found = expert(model, tensors, batches, [1, 1], config=Expert(steps=10))
    assert (found.coefficients["up"] != 0.5).all()
    assert all(factor.grad is None for own in tensors for factor in own["up"])
    assert all((p == before[n]).all() and p.grad is None for n, p in model.named_parameters())
    assert model.training
    assert model.drop.training
    assert model.up.weight.requires_grad
    assert not model.out.bias.requires_grad
    assert (model.eval()(ids) == plain).all()
    assert not model.up._forward_hooks


def test_seeded_and_reproducible() -> None:
    model, adapters, batches = setup()
    torch.manual_seed(1)
    one = expert(model, adapters, batches, [1.0, 3.0], config=Expert(steps=20))
    torch.manual_seed(2)
    two = expert(model, adapters, batches, [2.0, 6.0], config=Expert(steps=20))
    other = expert(model, adapters, batches, [1.0, 3.0], config=Expert(steps=20, seed=1))
    assert (one.coefficients["up"] == two.coefficients["up"]).all()
    assert one.losses == two.losses
    assert one.losses != other.losses


def test_losses_are_weighted() -> None:
    model, adapters, batches = setup()
    one, two, both = (
        expert(model, adapters, batches, weights, config=Expert(steps=1)).losses[0]
        for weights in ([1.0, 0.0], [0.0, 1.0], [1.0, 3.0])
    )
    assert both == pytest.approx(0.25 * one + 0.75 * two, rel=1e-5)
    assert one != pytest.approx(two, rel=0.01)


def test_one_site_keeps_its_adapter() -> None:
    model, adapters, batches = setup()
    found = expert(model, adapters[:1], batches[:1], [1.0])
    assert (found.coefficients["up"] == 1).all()
    assert alignment_loss(model, adapters[:1], batches[:1], [1.0], found.coefficients) == pytest.approx(0, abs=1e-9)
    half = expert(model, adapters[:1], batches[:1], [1.0], config=Expert(start=0.5))
    assert np.allclose(half.coefficients["up"], 1, atol=0.1)
    assert not (half.coefficients["up"] == 1).all()


def test_the_pull_holds_coefficients_at_the_start() -> None:
    model, adapters, batches = setup()
    found = expert(model, adapters, batches, [1.0, 1.0], config=Expert(pull=1e3, steps=50, lr=0.01))
    assert np.allclose(found.coefficients["up"], 0.5, atol=0.02)
    still = expert(model, adapters, batches, [1.0, 1.0], config=Expert(steps=0, start=0.3))
    assert np.allclose(still.coefficients["up"], 0.3)


def test_chunks_are_rows_and_merge_as_the_model_ran() -> None:
    """A model whose weight has the merged change in it is the model with scaled adapter outputs."""
    model, adapters, batches = setup()
    adapters[1]["up"][0][:] += 0.5  # so that it is not the same as both
    found = expert(
        model, adapters, batches, [1.0, 1.0], 0.5, chunks={"up": 3}, hidden_modules=["out"], config=Expert(steps=5)
    )
    coefficients = found.coefficients["up"]
    assert coefficients.shape == (2, 3)
    assert len(np.unique(np.round(coefficients, 6))) > 2
    merged = combine_adapters(adapters, found.coefficients, 0.5)["up"]
    assert merged.left.shape == (WIDTH, 2 * RANK)
    loop = np.zeros((WIDTH, WIDTH))
    for site, own in enumerate(adapters):
        a, b = own["up"]
        for row in range(WIDTH):  # eight rows in three chunks: 3, 3, 2
            loop[row] += 0.5 * coefficients[site, (0, 0, 0, 1, 1, 1, 2, 2)[row]] * (b[row] @ a)
    assert np.allclose(merged.dense(), loop, atol=1e-6)
    config = Expert(hidden=0, temperature=2.0)
    distance = alignment_loss(model, adapters, batches, [1.0, 3.0], found.coefficients, 0.5, ["out"], config)
    with torch.no_grad():
        teachers = []
        for site in (0, 1):
            a, b = adapters[site]["up"]
            teachers.append(outputs(model, 0.5 * b @ a, batches[site]))
        mine = [outputs(model, loop, own) for own in batches]
    kl = [float((t.exp() * (t - m)).sum(-1).mean()) for t, m in zip(teachers, mine, strict=True)]
    assert distance == pytest.approx(4 * (0.25 * kl[0] + 0.75 * kl[1]), rel=1e-3)


def outputs(model: Toy, change: np.ndarray, batches: list[torch.Tensor]) -> torch.Tensor:
    """Log-probabilities at temperature 2 of a model with a change of its weight, (tokens, classes)."""
    old = model.up.weight.detach().clone()
    model.up.weight += torch.tensor(change, dtype=torch.float32)
    out = torch.cat([torch.log_softmax(model.eval()(ids) / 2, -1).reshape(-1, TOKENS) for ids in batches])
    model.up.weight[:] = old
    return out


def test_padding_and_outputs_of_other_kinds() -> None:
    """Tokens that the mask hides change nothing; outputs may be objects with logits, hidden states tuples."""
    model, adapters, _ = setup()

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            return type("Output", (), {"logits": self.inner(ids)})()

    mask = torch.tensor([[1, 1, 1, 0, 0]])
    given = [{f"inner.{n}": p for n, p in own.items()} for own in adapters]
    losses = []
    for hidden in (4, 5):
        batches = [[{"ids": torch.tensor([[s, s + 1, s + 2, hidden, 7]]), "attention_mask": mask}] for s in (0, 4)]
        losses.append(expert(Wrapped(), given, batches, [1.0, 1.0], config=Expert(steps=3)).losses)
    assert losses[0] == losses[1]
    assert losses[0][0] > 0


def bad(change: str) -> dict[str, object]:
    model, adapters, batches = setup()
    given: dict[str, object] = {"model": model, "adapters": adapters, "batches": batches, "weights": [1.0, 1.0]}
    a, b = adapters[1]["up"]
    match change:
        case "nan":
            adapters[1]["up"] = (a, b * np.nan)
        case "shape":
            adapters[1]["up"] = (a, b[:-1])
        case "rank":
            adapters[1]["up"] = (a[:1], b)
        case "missing":
            adapters[1] = {}
        case "unknown":
            given["adapters"] = [{"down": own["up"]} for own in adapters]
        case "no batch":
            batches[1] = []
        case "hidden":
            given["hidden_modules"] = ["deep"]
        case "chunks":
            given["chunks"] = {"up": 9}
        case "chunks of none":
            given["chunks"] = {"out": 1}
        case "diverges":
            adapters[1]["up"] = (a, b * np.float32(1e30))
    return given


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("nan", r"adapters\.1\.up\.B: NaN or infinity"),
        ("shape", r"adapters\.1\.up\.B: \[7, 2\]: must have the shape \[8, 2\]"),
        ("rank", r"adapters\.1\.up\.B: \[8, 2\]: must have the shape \[8, 1\]"),
        ("missing", r"adapters\.1: \['up'\]: must have the modules of the first"),
        ("unknown", r"adapters\.0: down: must be the name of a module"),
        ("no batch", r"batches: \[3, 0\]: must be some for each of 2 sites"),
        ("hidden", r"hidden_modules: deep: must be the name"),
        ("chunks", r"chunks\.up: 9: must be from 1 to its 8 rows"),
        ("chunks of none", r"chunks: \['out'\]"),
        ("diverges", r"expert\.lr: .*the loss is"),
    ],
)
def test_bad_inputs(change: str, words: str) -> None:
    given = bad(change)
    with pytest.raises(ConfigError, match=words):
        expert(**given)
    model = given["model"]
    assert isinstance(model, Toy)
    assert not model.up._forward_hooks
    assert model.up.weight.requires_grad


@pytest.mark.parametrize("field", ["lr", "pull", "temperature", "steps", "hidden"])
def test_bad_settings(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"expert\.{field}: -1"):
        Expert(**{field: -1})


def test_combined_adapters_need_all_coefficients() -> None:
    _, adapters, _ = setup()
    for given, words in (({}, "none"), ({"up": np.ones((3, 1))}, r"\[3, 1\]")):
        with pytest.raises(ConfigError, match=rf"coefficients\.up: {words}: must be coefficients of 2 sites"):
            combine_adapters(adapters, given)


@pytest.mark.parametrize(
    ("importance", "total", "counts"),
    [
        ({"a": 1.0, "b": 1.0}, 2, [1, 1]),
        ({"a": 3.0, "b": 1.0}, 6, [4, 2]),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, 7, [3, 2, 2]),
        ({"a": 0.0, "b": 5.0}, 10, [1, 9]),
        ({"a": 0.0, "b": 0.0}, 5, [3, 2]),
        ({"a": 0.45, "b": 0.35, "c": 0.2}, 8, [3, 3, 2]),
        ({"a": 1e308, "b": 1e308}, 4, [2, 2]),
        ({"a": 5e-324, "b": 0.0}, 4, [3, 1]),
        ({}, 3, []),
    ],
)
def test_chunk_counts(importance: dict[str, float], total: int, counts: list[int]) -> None:
    assert list(chunk_counts(importance, total).values()) == counts


def test_chunk_counts_keep_the_budget_and_the_order() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        importance = {str(i): float(v) for i, v in enumerate(draw.gamma(0.3, size=draw.integers(1, 12)))}
        total = int(len(importance) + draw.integers(0, 50))
        counts = chunk_counts(importance, total)
        assert sum(counts.values()) == total
        rest, whole = total - len(importance), sum(importance.values())
        for name, value in importance.items():
            assert abs(counts[name] - 1 - rest * value / whole) < 1 + 1e-9
        ordered = [counts[name] for name in sorted(importance, key=importance.__getitem__)]
        assert ordered == sorted(ordered)


def test_bad_chunk_counts() -> None:
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"importance\.b"):
            chunk_counts({"a": 1.0, "b": value}, 4)
    with pytest.raises(ConfigError, match="total: 1: must be at least 2"):
        chunk_counts({"a": 1.0, "b": 1.0}, 1)


def test_importance() -> None:
    draw = np.random.default_rng(0)
    changes = [Factored(draw.standard_normal((5, 2)), draw.standard_normal((2, 7))) for _ in range(2)]
    assert frobenius_norm(changes[0]) == pytest.approx(np.linalg.norm(changes[0].dense()))
    coefficients = np.array([[0.5, -1.5], [0.0, 0.2]])
    loop = sum(c * np.linalg.norm(d.dense()) * 35 for c, d in zip((1.0, 0.1), changes, strict=True))
    assert compute_importance({"m": coefficients}, {"m": changes})["m"] == pytest.approx(loop)
    with pytest.raises(ConfigError, match=r"changes: \['m', 'n'\]"):
        compute_importance({"m": coefficients}, {"n": changes})
    with pytest.raises(ConfigError, match=r"changes\.m: 1: must be 2"):
        compute_importance({"m": coefficients}, {"m": changes[:1]})
