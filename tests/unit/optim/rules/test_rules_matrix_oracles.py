"""Matrix rules against released packages, and against slow twins from their papers."""

import itertools
import logging
import math

import pytest
import torch

from fedcompress.errors import ConfigError
from fedcompress.numerics.philox import hash_seed
from fedcompress.optim import OPTIMIZERS, ShardInfo, StepContext, build_optimizer, parse_optimizer
from fedcompress.optim.state.bases import compute_basis
from fedcompress.optim.table import state_bytes
from tests.unit.optim.models import net
from tests.unit.optim.rules.test_rules import gradients

SHAPES = [(24, 16), (16, 24), (16, 16)]
BETA1, BETA2 = 0.9, 0.999


def shard_of(shape: tuple[int, ...], gap: int, phase: int = 0) -> ShardInfo:
    """A parameter whose name makes it refresh at a known phase."""
    return ShardInfo(name=next(n for n in map(str, itertools.count()) if hash_seed(n) % gap == phase), shape=shape)


def run(
    call: str, grads: list[torch.Tensor], shard: ShardInfo, weight: torch.Tensor | None = None
) -> list[torch.Tensor]:
    rule, state, deltas = parse_optimizer(call), {}, []
    for step, grad in enumerate(grads, start=1):
        delta, state = rule.update(grad.clone(), state, shard, StepContext(step=step), weight)
        deltas.append(delta.clone())
    return deltas


def theirs(made: type, grads: list[torch.Tensor], **group: object) -> list[torch.Tensor]:
    """Directions of a torch optimizer with learning rate 1."""
    p = torch.nn.Parameter(torch.zeros_like(grads[0]))
    optimizer, deltas = made([{"params": [p], **group}], lr=1.0), []
    for grad in grads:
        p.data.zero_()
        p.grad = grad.clone()
        optimizer.step()
        deltas.append(-p.detach().clone())
    return deltas


def close(ours: list[torch.Tensor], others: list[torch.Tensor], atol: float = 2e-5) -> None:
    for step, (a, b) in enumerate(zip(ours, others, strict=True), start=1):
        torch.testing.assert_close(a.double(), b.double(), atol=atol, rtol=1e-4, msg=lambda m, s=step: f"step {s}: {m}")


def adam_twin(low: torch.Tensor, m: torch.Tensor, v: torch.Tensor, t: int, eps: float, plain: bool) -> torch.Tensor:
    """Entry by entry; the moments are written to. With ``plain``, without any correction of bias."""
    out = torch.empty_like(low)
    for place in itertools.product(*map(range, low.shape)):
        m[place] = BETA1 * m[place] + (1 - BETA1) * low[place]
        v[place] = BETA2 * v[place] + (1 - BETA2) * low[place] ** 2
        if plain:
            out[place] = m[place] / (math.sqrt(v[place]) + eps)
        else:
            out[place] = m[place] / (1 - BETA1**t) / (math.sqrt(v[place] / (1 - BETA2**t)) + eps)
    return out


def correction(t: int) -> float:
    return math.sqrt(1 - BETA2**t) / (1 - BETA1**t)


# Released packages.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["std", "reverse", "right", "left", "full"])
def test_galore_is_galore_torch(shape: tuple[int, int], side: str) -> None:
    made = pytest.importorskip("galore_torch").GaLoreAdamW
    grads, kind = gradients(shape, 12), {"reverse": "reverse_std"}.get(side, side)
    others = theirs(
        lambda groups, lr: made(groups, lr=lr, no_deprecation_warning=True),
        grads,
        rank=4,
        update_proj_gap=5,
        scale=0.25,
        proj_type=kind,
    )
    close(run(f"galore(rank=4,update_gap=5,side={side})", grads, shard_of(shape, 5)), others)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["std", "reverse", "right", "left"])
def test_fira_is_pytorch_optimizers_where_its_scale_is_1(shape: tuple[int, int], side: str) -> None:
    """With another scale it takes off the scaled projection, as the released code does."""
    made, kind = pytest.importorskip("pytorch_optimizer").Fira, {"reverse": "reverse_std"}.get(side, side)
    grads = gradients(shape, 12)
    others = theirs(made, grads, rank=4, update_proj_gap=5, scale=1.0, projection_type=kind)
    close(run(f"fira(rank=4,update_gap=5,scale=1,side={side})", grads, shard_of(shape, 5, phase=1)), others)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rest_of_fira_is_outside_of_the_subspace(shape: tuple[int, int]) -> None:
    grads, shard = gradients(shape, 12), shard_of(shape, 5)
    whole, inside_only = (run(f"{name}(rank=4,update_gap=5)", grads, shard) for name in ("fira", "galore"))
    rest = [a - b for a, b in zip(whole, inside_only, strict=True)]
    for step, (grad, each) in enumerate(zip(grads, rest, strict=True)):
        side, source = ("right", grads[step // 5 * 5]) if shape[0] >= shape[1] else ("left", grads[step // 5 * 5])
        basis = compute_basis(source, 4, "svd", side=side)
        inside = each @ basis if side == "right" else basis.T @ each
        assert inside.abs().max() < 1e-5
        assert (each * grad).sum() > 0
        assert each.norm() > 0


# Twins.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("basis", ["seed", "kept"])
@pytest.mark.parametrize("scaling", ["channel", "tensor"])
def test_apollo_is_its_twin(shape: tuple[int, int], basis: str, scaling: str) -> None:
    """pytorch_optimizer's goes back from the projection, which is not the paper's."""
    shard, grads = shard_of(shape, 5), gradients(shape, 12)
    tall, last, out = shape[0] >= shape[1], None, []
    m, v = torch.zeros(2, 3, max(shape)).double()
    for t, grad in enumerate(grads, start=1):
        p = torch.randn(min(shape), 3, generator=shard.generator((t - 1) // 5)).double() / math.sqrt(3)
        wide = (grad.T if tall else grad).double()
        low = p.T @ wide
        inner = adam_twin(low, m, v, t, 1e-6, plain=True)
        scaled = wide.clone()
        for j in range(wide.shape[1]):
            a, b = (inner[:, j], low[:, j]) if scaling == "channel" else (inner, low)
            scaled[:, j] *= a.norm() / b.norm()
        if last is not None and scaled.norm() > 1.01 * last:
            scaled *= 1.01 * last / scaled.norm()
        last = scaled.norm()
        scaled = scaled * correction(t) * math.sqrt(7)
        out.append(scaled.T if tall else scaled)
    call = f"apollo(rank=3,update_gap=5,scale=7,basis={basis},scaling={scaling})"
    close(run(call, grads, shard), out, atol=1e-4)


def test_apollo_mini_is_apollo_of_rank_1() -> None:
    grads, shard = gradients((24, 16), 7), shard_of((24, 16), 5)
    mini, apollo = (run(c, grads, shard) for c in ("apollo-mini", "apollo(rank=1,scaling=tensor,scale=128)"))
    assert all(torch.equal(a, b) for a, b in zip(mini, apollo, strict=True))


@pytest.mark.parametrize("call", ["apollo(rank=4)", "apollo-mini", "fira(rank=4)"])
def test_a_gradient_of_0_does_not_stop_the_limiter_for_good(call: str) -> None:
    """LoRA's A has none at the first step."""
    grads = [torch.zeros(24, 16), *gradients((24, 16), 3)]
    deltas = run(call, grads, shard_of((24, 16), 200))
    assert deltas[0].norm() == 0
    assert deltas[1].norm() > 1


@pytest.mark.parametrize("call", ["apollo(rank=4)", "fira(rank=4,scale=1e-9)"])
def test_the_limiter_holds_growth(call: str) -> None:
    grads = [g * 10**i for i, g in enumerate(gradients((24, 16), 6))]
    norms = [d.norm() / correction(t) for t, d in enumerate(run(call, grads, shard_of((24, 16), 200)), start=1)]
    assert all(b <= 1.0101 * a for a, b in itertools.pairwise(norms))


def cosine_twin(size: int) -> list[list[float]]:
    """Columns of the orthonormal DCT-II."""
    scale = [math.sqrt((1 if k == 0 else 2) / size) for k in range(size)]
    return [[scale[k] * math.cos(math.pi / size * (i + 0.5) * k) for i in range(size)] for k in range(size)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gap", [1, 3])
@pytest.mark.parametrize("carry", ["keep", "project"])
@pytest.mark.parametrize("feedback", ["none", "fp32"])
def test_dct_adamw_is_its_twin(shape: tuple[int, int], gap: int, carry: str, feedback: str) -> None:
    shard, grads = shard_of(shape, gap), gradients(shape, 9)
    tall, cosines = shape[0] >= shape[1], torch.tensor(cosine_twin(min(shape))).double()
    chosen, out = [], []
    error = torch.zeros(max(shape), min(shape)).double()
    m, v = torch.zeros(2, 4, max(shape)).double()
    for t, grad in enumerate(grads, start=1):
        a = (grad if tall else grad.T).double() + error
        if (t - 1) % gap == 0:
            sums = [(a @ c).abs().sum().item() for c in cosines]
            before, chosen = chosen, sorted(sorted(range(len(sums)), key=lambda k: -sums[k])[:4])
            if carry == "project":
                kept = dict(zip(before, zip(m.clone(), v.clone(), strict=True), strict=False))
                none = torch.zeros(2, max(shape)).double()
                m, v = (torch.stack([kept.get(k, none)[i] for k in chosen]) for i in range(2))
        low = torch.stack([a @ cosines[k] for k in chosen])
        if feedback != "none":
            error = a - low.T @ cosines[chosen]
        delta = adam_twin(low, m, v, t, 1e-8, plain=False).T @ cosines[chosen]
        out.append(delta if tall else delta.T)
    call = f"dct-adamw(rank=4,update_gap={gap},carry={carry},feedback={feedback})"
    close(run(call, grads, shard), out)


@pytest.mark.parametrize("feedback", ["fp32", "8bit", "4bit"])
@pytest.mark.parametrize("name", ["dct-adamw", "ldadam"])
def test_feedback_loses_nothing(name: str, feedback: str) -> None:
    """What was stepped and what is kept add up to the gradients, but for the rounding of the error."""
    shape = (80, 64)
    shard, rule = shard_of(shape, 1), parse_optimizer(f"{name}(rank=8,beta1=0,feedback={feedback})")
    state, done = {}, torch.zeros(shape)
    grads = gradients(shape, 5)
    for step, grad in enumerate(grads, start=1):
        _, state = rule.update(grad, state, shard, StepContext(step=step), None)
        # with beta1 = 0 the first moment is the projected gradient
        if name == "ldadam":
            done += state["m"] @ state["basis"].T
        else:
            done += state["m"] @ torch.tensor(cosine_twin(64))[state["columns"].long()]
    from fedcompress.optim.state.moment_storage import unpack_moment

    lost = (sum(grads) - done - unpack_moment(state["error"], signed=True)).norm() / sum(grads).norm()
    assert lost < {"fp32": 1e-5, "8bit": 0.05, "4bit": 0.5}[feedback]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("feedback", ["none", "fp32"])
def test_ldadam_is_its_twin(shape: tuple[int, int], feedback: str) -> None:
    """Projections as matrices of full size; moments by their formulas, hats and all."""
    beta1, beta2, rho, rank = 0.8, 0.97, 0.7, 3
    tall, out = shape[0] >= shape[1], []
    error = lost = torch.zeros(min(shape), max(shape)).double()
    m = v = torch.zeros(rank, max(shape)).double()
    old = torch.zeros(min(shape), rank).double()
    for t, grad in enumerate(gradients(shape, 12), start=1):
        a = (grad.T if tall else grad).double() + error
        if t == 1:
            p = torch.linalg.svd(a)[0][:, :rank]
        else:
            m_hat, v_hat = m / (1 - beta1 ** (t - 1)), v / (1 - beta2 ** (t - 1))
            b = rho * old @ m_hat + (1 - rho) * a
            p = torch.linalg.qr(b @ b.T @ old)[0]
            q = p.T @ old
            lost = old @ m - p @ (q @ m)
            v = (1 - beta2 ** (t - 1)) * (q**2 @ (v_hat - m_hat**2) + (q @ m_hat) ** 2).abs()
            m = q @ m
        low = p.T @ a
        m, v, old = beta1 * m + (1 - beta1) * low, beta2 * v + (1 - beta2) * low**2, p
        delta = p @ (m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + 1e-8))
        if feedback != "none":
            error = a - p @ low + beta1 / (1 - beta1) * lost
        out.append(delta.T if tall else delta)
    call = f"ldadam(rank=3,rho=0.7,beta1=0.8,beta2=0.97,feedback={feedback})"
    close(run(call, gradients(shape, 12), shard_of(shape, 1)), out, atol=2e-4)


def int4_twin(basis: torch.Tensor, group: int) -> torch.Tensor:
    flat = basis.reshape(-1).tolist()
    for first in range(0, len(flat), group):
        some = flat[first : first + group]
        scale = max(max(some) - min(some), 1e-5) / 15
        zero = min(max(round(-min(some) / scale), 0), 15)
        for i, value in enumerate(some):
            flat[first + i] = scale * (min(max(round(value / scale) + zero, 0), 15) - zero)
    return torch.tensor(flat).view(basis.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise", [0.05, 30.0])
def test_q_galore_is_its_twin(shape: tuple[int, int], noise: float) -> None:
    """Where the gradient stays, the interval doubles; where it does not, it does not."""
    drawn = torch.Generator().manual_seed(1)
    fixed = torch.randn(shape[0], 1, generator=drawn) @ torch.randn(1, shape[1], generator=drawn)
    grads = [fixed + noise * g for g in gradients(shape, 30, seed=4)]
    tall, gap, cosines, svds, basis, out = shape[0] >= shape[1], 2, [], [], None, []
    m, v = torch.zeros(2, 3, max(shape)).double()
    for t, grad in enumerate(grads, start=1):
        wide = grad.T if tall else grad
        if (t - 1) % gap == 0:
            svds.append(t)
            left, _, right = torch.linalg.svd(grad, full_matrices=False)
            new = right[:3].T if tall else left[:, :3]
            if basis is not None:
                cosines.append(abs(float(basis[:, 0] @ new[:, 0] / basis[:, 0].norm() / new[:, 0].norm())))
                if len(cosines) >= 2 and sum(cosines[-2:]) / 2 >= 0.8:
                    gap *= 2
            basis = int4_twin(new, 7)
        low = (basis.T @ wide).double()
        delta = 0.25 * basis.double() @ adam_twin(low, m, v, t, 1e-8, plain=False)
        out.append(delta.T if tall else delta)
    call = "q-galore(rank=3,update_gap=2,window=2,threshold=0.8,group=7,state=fp32)"
    close(run(call, grads, shard_of(shape, 64)), out)
    assert (gap > 4) == (noise < 1), "the test must see both"
    assert svds[1] == 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["std", "full"])
def test_gradnormlorp_is_its_twin(shape: tuple[int, int], side: str) -> None:
    """Gradients of length and direction by autograd, the step of the weight by its derivative at 0."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    grads, shard = gradients(shape, 7), shard_of(shape, 5)
    length = weight.norm(dim=1, keepdim=True)

    def rows(length: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return length * v / v.norm(dim=1, keepdim=True)

    by_length, by_direction = [], []
    for grad in grads:
        _, back = torch.func.vjp(rows, length, weight)
        for found, to in zip(back(grad), (by_length, by_direction), strict=True):
            to.append(found)
    m, v, out = *torch.zeros(2, shape[0], 1).double(), []
    inner = f"(rank=4,update_gap=5,side={side},eps=0.01)"  # zeros of the first step are noise, which eps hides
    turns = run(f"galore{inner}", by_direction, shard)
    for t, (along, turn) in enumerate(zip(by_length, turns, strict=True), start=1):
        longer = adam_twin(along.double(), m, v, t, 0.01, plain=True) * correction(t)
        out.append(torch.func.jvp(rows, (length, weight), (longer.float(), turn))[1])
    close(run(f"gradnormlorp{inner}", grads, shard, weight), out)


# Bases in fewer bits, and those that fail.


@pytest.mark.parametrize("rule", ["galore", "fira", "gradnormlorp"])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_bf16_products_keep_the_direction(rule: str, shape: tuple[int, int]) -> None:
    """A sign of the first step may turn where a gradient is near 0: each costs 2 in 384 of the cosine."""
    grads, shard = gradients(shape, 6), shard_of(shape, 5)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact, rough = (run(f"{rule}(rank=8,update_gap=5,products={p})", grads, shard, weight) for p in ("fp32", "bf16"))
    for one, other in zip(exact, rough, strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.float().flatten(), dim=0) > 0.98


@pytest.mark.parametrize("call", ["galore(rank=4,update_gap=1)", "fira(rank=4,update_gap=1)"])
def test_a_failing_svd_keeps_the_old_basis(call: str, monkeypatch, caplog) -> None:
    rule, shard, grads = parse_optimizer(call), shard_of((24, 16), 1), gradients((24, 16), 3)
    _, state = rule.update(grads[0], {}, shard, StepContext(), None)
    before = state["basis"].clone()

    def fails(*args: object, **kwargs: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    with caplog.at_level(logging.WARNING, logger="fedcompress.optim"):
        delta, state = rule.update(grads[1], state, shard, StepContext(step=2), None)
    assert torch.equal(state["basis"], before)
    assert "old basis stays" in caplog.text
    assert delta.isfinite().all()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fedcompress.optim"):
        rule.update(grads[2], {}, shard, StepContext(), None)
    assert "range finder" in caplog.text


def test_a_failing_svd_rounds_the_old_basis_of_q_galore_once_more(monkeypatch, caplog) -> None:
    rule, shard, grads = parse_optimizer("q-galore(rank=4,update_gap=1)"), shard_of((24, 16), 1), gradients((24, 16), 2)
    _, state = rule.update(grads[0], {}, shard, StepContext(), None)
    codes = state["codes"].clone()

    def fails(*args: object, **kwargs: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    with caplog.at_level(logging.WARNING, logger="fedcompress.optim"):
        _, state = rule.update(grads[1], state, shard, StepContext(step=2), None)
    assert torch.equal(state["codes"], codes)
    assert "old basis stays" in caplog.text


# What is refused.


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("apollo(growth=0.9)", "apollo.growth.*at least 1"),
        ("apollo(scaling=row)", "apollo.scaling.*must be one of"),
        ("apollo-mini(rank=0)", "apollo-mini.rank.*above 0"),
        ("dct-adamw(carry=turn)", "dct-adamw.carry.*must be one of"),
        ("dct-adamw(feedback=2bit)", "dct-adamw.feedback.*must be one of"),
        ("fira(growth=0)", "fira.growth.*at least 1"),
        ("fira(side=full)", "fira.side.*std, reverse, right or left"),
        ("fira(scale=0)", "fira.scale.*above 0"),
        ("gradnormlorp(beta2=1)", "gradnormlorp.beta2.*below 1"),
        ("ldadam(rho=1)", "ldadam.rho.*below 1"),
        ("ldadam(start=dct)", "ldadam.start.*must be one of"),
        ("q-galore(threshold=0)", "q-galore.threshold.*above 0"),
        ("q-galore(window=0)", "q-galore.window.*above 0"),
        ("q-galore(basis=dct)", "q-galore.basis.*must be one of"),
    ],
)
def test_bad_calls_name_the_field_and_the_rule(call: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_optimizer(net(), call, lr=1e-3)


# The rank of lift counts entries, which may be all there are.
RANKED = [n for n, row in OPTIMIZERS.items() if "rank" in row.config.__dataclass_fields__ and n != "lift"]


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (1, 24), (24, 1), (1, 1)])
def test_a_rank_above_the_smaller_side_is_what_there_is(name: str, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    asked, there = (
        run(
            f"{name}(rank={rank},update_gap=2)" if name != "ldadam" else f"{name}(rank={rank})",
            gradients(shape, 5),
            shard_of(shape, 200),
            weight,
        )
        for rank in (128, min(shape))
    )
    assert all(torch.equal(a, b) and a.isfinite().all() and a.norm() > 0 for a, b in zip(asked, there, strict=True))
    rules = [parse_optimizer(f"{name}(rank={rank})") for rank in (128, min(shape))]
    assert state_bytes(rules[0], shape) == state_bytes(rules[1], shape)


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (9, 9)])
@pytest.mark.parametrize("full", [False, True])
def test_the_least_and_the_greatest_rank(name: str, shape: tuple[int, int], full: bool) -> None:
    weight = torch.ones(shape)
    weight[0] = 0
    deltas = run(f"{name}(rank={min(shape) if full else 1})", gradients(shape, 4), shard_of(shape, 200), weight)
    assert all(d.isfinite().all() and d.shape == shape for d in deltas)
    assert all(d.norm() > 0 for d in deltas)
