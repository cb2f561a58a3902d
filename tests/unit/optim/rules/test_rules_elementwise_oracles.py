"""Elementwise rules against torch's, bitsandbytes' and pytorch_optimizer's."""

import pytest
import torch

from fedcompress.optim import build_optimizer
from fedcompress.optim.state.moment_storage import unpack_moment
from tests.unit.optim.models import net, state, train

STEPS = 20


def compare(call: str, oracle: type[torch.optim.Optimizer], weight_decay: float, atol: float, **kwargs: object) -> None:
    """Both train the same model; norms and biases have no weight decay, as ``build_optimizer`` makes it."""
    ours, theirs = net(), net()
    lr = 0.1 if "sgd" in call else 1e-2
    train(ours, build_optimizer(ours, call, lr=lr, weight_decay=weight_decay), 0, STEPS)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    train(theirs, oracle(groups, lr=lr, **kwargs), 0, STEPS)
    for one, other in zip(state(ours).values(), state(theirs).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs(weight_decay: float) -> None:
    compare("adamw", torch.optim.AdamW, weight_decay, 2e-6)
    compare("adamw(beta1=0.8,beta2=0.95,eps=1e-4)", torch.optim.AdamW, weight_decay, 2e-6, betas=(0.8, 0.95), eps=1e-4)


@pytest.mark.parametrize("call", ["sgd", "sgd(momentum=0.9)"])
def test_sgd_is_torchs(call: str) -> None:
    compare(call, torch.optim.SGD, 0.0, 2e-6, momentum=0.9 if "(" in call else 0.0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lion_is_the_published_one(weight_decay: float) -> None:
    published = pytest.importorskip("pytorch_optimizer")
    compare("lion", published.Lion, weight_decay, 2e-6, betas=(0.9, 0.99))


def test_signsgd_is_the_published_one() -> None:
    published = pytest.importorskip("pytorch_optimizer")
    compare("signsgd", published.SignSGD, 0.0, 2e-6, momentum=0.0)


class Matrix(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw8bit_is_that_of_bitsandbytes(weight_decay: float) -> None:
    """10 steps of 1e-3: the same maps and blocks, so codes agree but where one rounds to a neighbour."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    ours, theirs = Matrix(), Matrix()
    mine = build_optimizer(ours, "adamw8bit", lr=1e-3, weight_decay=weight_decay)
    other = bitsandbytes.optim.AdamW8bit(theirs.parameters(), lr=1e-3, weight_decay=weight_decay)
    for step in range(10):
        grad = torch.randn(128, 128, generator=torch.Generator().manual_seed(step)) * 0.1
        ours.weight.grad, theirs.weight.grad = grad, grad.clone()
        mine.step()
        other.step()
    kept, known = mine.memory["weight"], other.state[theirs.weight]
    distance = (ours.weight - theirs.weight).abs()
    assert distance.mean() < 1e-7
    assert distance.max() < 1e-4  # of 10 steps of up to 1e-3
    for key, code in (("m", "state1"), ("v", "state2")):
        assert (kept[key]["codes"].view(-1) == known[code].view(-1)).float().mean() > 0.999
    torch.testing.assert_close(kept["m"]["scales"], known["absmax1"], rtol=1e-5, atol=0)
    assert unpack_moment(kept["v"], signed=False).min() >= 0
