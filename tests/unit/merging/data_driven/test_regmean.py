"""RegMean against least squares on the inputs themselves, its closed forms, and inputs that it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.errors import ConfigError, LayoutError
from fedcompress.merging import InMemoryUpdates, Merger, parse_rule
from fedcompress.merging.data_driven import collect_grams, regmean, regmean_stacked
from fedcompress.types import Layout, Tensors, TensorSpec, zeros
from tests.support import lora_layout, normal

WIDTH = 24
LAYOUT = Layout((*lora_layout(modules=2).tensors, TensorSpec(name="dense.weight", shape=(5, WIDTH))))
BASE = normal(LAYOUT, 0, 0.3)
WEIGHTS = np.array([0.2, 0.3, 0.5])
UPDATES = [normal(LAYOUT, s, 0.2) for s in (1, 2, 3)]
NAMES = ["m0", "m1", "dense"]


def inputs(site: int, name: str, tokens: int = 60) -> np.ndarray:
    """Activations with a few strong directions of each site."""
    draw = np.random.default_rng(100 * site + NAMES.index(name))
    return draw.standard_normal((tokens, WIDTH)) @ (0.2 * np.eye(WIDTH) + draw.standard_normal((WIDTH, WIDTH)) / 5)


def grams_of(tokens: int = 60, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    return [{n: scale * inputs(i, n, tokens).T @ inputs(i, n, tokens) for n in NAMES} for i in range(3)]


def product(tensors: Tensors, module: str) -> np.ndarray:
    return tensors[f"{module}.lora_B.weight"].astype(np.float64) @ tensors[f"{module}.lora_A.weight"]


def sites() -> list[Tensors]:
    return [{n: BASE[n].astype(np.float64) + u[n] for n in u} for u in UPDATES]


def slow(targets: list[np.ndarray], gram: list[np.ndarray], off: float, ridge: float) -> np.ndarray:
    """The definition by loops, row by row, with an explicit system for each."""
    width = gram[0].shape[0]
    level = ridge * sum(w * sum(g[k, k] for k in range(width)) for w, g in zip(WEIGHTS, gram, strict=True)) / width
    out = np.zeros_like(targets[0])
    for row in range(out.shape[0]):
        left, right = np.zeros((width, width)), np.zeros(width)
        for weight, target, own in zip(WEIGHTS, targets, gram, strict=True):
            for i in range(width):
                for j in range(width):
                    entry = own[i, j] * (1 if i == j else off) + (level if i == j else 0)
                    left[i, j] += weight * entry
                    right[i] += weight * entry * target[row, j]
        out[row] = np.linalg.lstsq(left, right, rcond=None)[0]
    return out


@pytest.mark.parametrize(("off", "ridge", "tokens"), [(0.9, 1e-3, 60), (1.0, 1e-6, 60), (0.3, 1e-2, 5)])
def test_equals_the_loop(off: float, ridge: float, tokens: int) -> None:
    """Also with fewer tokens than columns."""
    grams = grams_of(tokens)
    found = regmean(BASE, InMemoryUpdates(LAYOUT, UPDATES), grams, WEIGHTS, off, ridge)
    dense = slow([u["dense.weight"].astype(float) for u in UPDATES], [g["dense"] for g in grams], off, ridge)
    assert np.allclose(found["dense.weight"], dense, atol=1e-5)
    factored = regmean_stacked(BASE, InMemoryUpdates(LAYOUT, UPDATES), grams, WEIGHTS, off, ridge)
    assert list(factored) == ["m0.weight", "m1.weight"]
    for module in ("m0", "m1"):
        whole = slow([product(s, module) for s in sites()], [g[module] for g in grams], off, ridge)
        assert factored[f"{module}.weight"].left.shape == (24, 12)
        assert np.allclose(factored[f"{module}.weight"].dense(), whole, atol=1e-6)


def error(tensors: Tensors, module: str) -> float:
    """What RegMean minimises: how far the outputs on each site's inputs are from its own."""
    new = {n: BASE[n] + tensors[n] for n in tensors}
    return sum(
        w * np.linalg.norm(inputs(i, module) @ (product(s, module) - product(new, module)).T) ** 2
        for i, (w, s) in enumerate(zip(WEIGHTS, sites(), strict=True))
    )


def test_the_refit_is_better_on_the_inputs_than_rules_without_data() -> None:
    held = InMemoryUpdates(LAYOUT, UPDATES)
    found = regmean(BASE, held, grams_of(), WEIGHTS, 1.0, 1e-6)
    assert list(found) == [t.name for t in LAYOUT.tensors]
    for module in ("m0", "m1"):
        for rule in ("lora-ridge", "mean"):
            other = Merger(rule=parse_rule(rule), layout=LAYOUT).merge(BASE, WEIGHTS.tolist(), held)
            assert error(found, module) < 0.99 * error(other, module), rule
        dense = regmean_stacked(BASE, held, grams_of(), WEIGHTS, 1.0, 1e-6)[f"{module}.weight"].dense()
        best = sum(
            w * np.linalg.norm(inputs(i, module) @ (product(s, module) - dense).T) ** 2
            for i, (w, s) in enumerate(zip(WEIGHTS, sites(), strict=True))
        )
        assert best < error(found, module)


@pytest.mark.parametrize("gram", ["identity", "zero", "singular"])
def test_equal_grams_give_the_weighted_mean(gram: str) -> None:
    """Of dense matrices and products; with identities the refit is ``lora-ridge``."""
    one = {"identity": np.eye(WIDTH), "zero": np.zeros((WIDTH, WIDTH)), "singular": grams_of(3)[0]["m0"]}[gram]
    grams, held = [dict.fromkeys(NAMES, one)] * 3, InMemoryUpdates(LAYOUT, UPDATES)
    found = regmean(BASE, held, grams, WEIGHTS)
    mean = Merger(rule=parse_rule("mean"), layout=LAYOUT).merge(BASE, WEIGHTS.tolist(), held)
    ridge = Merger(rule=parse_rule("lora-ridge"), layout=LAYOUT).merge(BASE, WEIGHTS.tolist(), held)
    assert np.allclose(found["dense.weight"], mean["dense.weight"], atol=1e-6)
    assert np.allclose(found["head.bias"], mean["head.bias"], atol=1e-7)
    for module in ("m0", "m1"):
        whole = sum(w * product(s, module) for w, s in zip(WEIGHTS, sites(), strict=True))
        stacked = regmean_stacked(BASE, held, grams, WEIGHTS)[f"{module}.weight"]
        assert np.allclose(stacked.dense(), whole, atol=1e-9)
        assert np.allclose(found[f"{module}.lora_A.weight"], ridge[f"{module}.lora_A.weight"], atol=1e-7)
        if gram != "singular":
            assert np.allclose(found[f"{module}.lora_B.weight"], ridge[f"{module}.lora_B.weight"], atol=1e-6)


def test_one_update_returns_itself() -> None:
    for grams in (grams_of()[:1], grams_of(2)[:1], [dict.fromkeys(NAMES, np.zeros((WIDTH, WIDTH)))]):
        found = regmean(BASE, InMemoryUpdates(LAYOUT, UPDATES[:1]), grams, [3.0], ridge=1e-6)
        for name, value in found.items():
            assert np.allclose(value, UPDATES[0][name], atol=1e-5), name


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_the_scale_of_all_grams_does_not_matter(scale: float) -> None:
    held = InMemoryUpdates(LAYOUT, UPDATES)
    one, two = (regmean(BASE, held, grams_of(scale=k), WEIGHTS) for k in (1.0, scale))
    assert all(np.allclose(one[n], two[n], atol=1e-5) for n in one)


def test_one_huge_gram_decides_where_it_has_seen_inputs() -> None:
    grams = grams_of()
    grams[1] = {n: 1e12 * g for n, g in grams[1].items()}
    found = regmean(BASE, InMemoryUpdates(LAYOUT, UPDATES), grams, WEIGHTS)
    assert np.allclose(found["dense.weight"], UPDATES[1]["dense.weight"], atol=0.05)


@pytest.mark.parametrize(("rank", "width"), [(0, 6), (4, 0), (8, 4)])
def test_odd_shapes(rank: int, width: int) -> None:
    layout = lora_layout(modules=1, rank=rank, width=width)
    updates = [normal(layout, s) for s in (1, 2)]
    found = regmean(zeros(layout), InMemoryUpdates(layout, updates), [{"m0": np.eye(width)}] * 2, [1.0, 1.0])
    layout.check(found, what="merged")


def broken(change: str) -> list[dict[str, np.ndarray]]:
    grams = grams_of()
    gram = grams[1]["m1"]
    match change:
        case "nan":
            gram[0, 0] = np.nan
        case "asymmetric":
            gram[0, 1] += 0.01 * np.abs(gram).max()
        case "negative":
            gram[3, 3] = -1.0
        case "indefinite":
            gram[0, 1] = gram[1, 0] = 2 * np.sqrt(gram[0, 0] * gram[1, 1])
        case "shape":
            grams[1]["m1"] = np.eye(WIDTH - 1)
        case "missing":
            del grams[1]["m1"]
        case "unknown":
            grams[1]["other"] = np.eye(WIDTH)
        case "uneven":
            del grams[1]["dense"]
        case "none":
            grams = grams[:2]
    return grams


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("nan", r"grams\.1\.m1: NaN or infinity: must be finite"),
        ("asymmetric", r"grams\.1\.m1: asymmetry 0\.01 .*must be symmetric"),
        ("negative", r"grams\.1\.m1: .*positive semidefinite"),
        ("indefinite", r"grams\.1\.m1: .*positive semidefinite"),
        ("shape", r"grams\.1\.m1: \[23, 23\]: must have the shape \[24, 24\]"),
        ("missing", r"grams\.1: missing \['m1'\]"),
        ("unknown", r"grams\.1: .*extra \['other'\]"),
        ("uneven", r"grams\.1: missing \['dense'\]"),
        ("none", "grams: 2: must be 3"),
    ],
)
def test_bad_grams(change: str, words: str) -> None:
    for rule in (regmean, regmean_stacked):
        with pytest.raises(ConfigError, match=words):
            rule(BASE, InMemoryUpdates(LAYOUT, UPDATES), broken(change), WEIGHTS)


def test_a_gram_that_only_a_factorization_refuses() -> None:
    """Entries are within what the diagonal allows, but an eigenvalue is far below 0."""
    bad = np.eye(WIDTH) + 0.9 * (np.eye(WIDTH) - 1)
    with pytest.raises(ConfigError, match="negative eigenvalue: must be positive semidefinite"):
        regmean(BASE, InMemoryUpdates(LAYOUT, UPDATES), [dict.fromkeys(NAMES, bad)] * 3, WEIGHTS)


def test_bad_parameters() -> None:
    held, grams = InMemoryUpdates(LAYOUT, UPDATES), grams_of()
    for options in ({"ridge": 0.0}, {"ridge": float("nan")}, {"off_diagonal": 1.1}, {"off_diagonal": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            regmean(BASE, held, grams, WEIGHTS, **options)
    with pytest.raises(ConfigError, match="weights"):
        regmean(BASE, held, grams, [0.0, 0.0, 0.0])
    with pytest.raises(LayoutError, match="regmean: base"):
        regmean({}, held, grams, WEIGHTS)


def test_grams_are_collected_without_padding_and_without_a_trace() -> None:
    import torch

    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.drop = torch.nn.Embedding(11, 6), torch.nn.Dropout(0.5)
            self.one, self.two = torch.nn.Linear(6, 7), torch.nn.Linear(7, 3)

        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.two(input=torch.relu(self.one(self.drop(self.table(ids)))))

    torch.manual_seed(0)
    model = Toy().train()
    model.one.weight.requires_grad_(False)
    ids, mask = torch.randint(0, 11, (3, 2, 5)), (torch.rand(3, 2, 5) > 0.3).long()
    grams = collect_grams(
        model, ["one", "two"], [{"ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)]
    )
    rows = [
        model.table.weight.detach().numpy()[int(i)] for i, m in zip(ids.ravel(), mask.ravel(), strict=True) if int(m)
    ]
    loop = sum(np.outer(r, r) for r in rows) / len(rows)
    assert np.allclose(grams["one"], loop, atol=1e-6)
    assert grams["two"].shape == (7, 7)
    assert (grams["two"] == grams["two"].T).all()
    assert model.training
    assert model.two.weight.requires_grad
    assert not model.one.weight.requires_grad
    assert not model.one._forward_pre_hooks
    with pytest.raises(ConfigError, match="module_names: three: must be the name"):
        collect_grams(model, ["one", "three"], [])
    with pytest.raises(ConfigError, match="no token for one"):
        collect_grams(model, ["one"], [])
    with torch.no_grad():
        model.table.weight[:] = float("nan")
    with pytest.raises(ConfigError, match="NaN or infinity into one"):
        collect_grams(model, ["one"], [{"ids": ids[0], "attention_mask": mask[0]}])
    assert not model.one._forward_pre_hooks
