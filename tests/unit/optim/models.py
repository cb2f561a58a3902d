"""Small models with every kind of parameter, and calls of every rule that fit them."""

import math

import torch

from fedcompress.optim import OPTIMIZERS
from fedcompress.optim.engine.parameter_roles import find_layer_path

# One call at least for each row; parameters that suit matrices of side 12 and more.
CALLS = {
    "adamp": ["adamp", "adamp(delta=1.0,state=bf16)"],
    "adamw": ["adamw", "adamw(state=bf16)", "adamw(state=4bit)"],
    "adamw8bit": ["adamw8bit"],
    "apollo": ["apollo(rank=4,update_gap=3)", "apollo(rank=4,update_gap=3,basis=kept,scaling=tensor,state=8bit)"],
    "apollo-mini": ["apollo-mini(update_gap=3)"],
    "badam": ["badam(update_gap=3,others=trained)", "badam(update_gap=3,order=ascending)"],
    "dct-adamw": [
        "dct-adamw(rank=4)",
        "dct-adamw(rank=4,carry=project,feedback=8bit)",
        "dct-adamw(rank=4,update_gap=3,carry=reset,feedback=fp32)",
    ],
    "fira": ["fira(rank=4,update_gap=3)", "fira(rank=4,update_gap=3,basis=random,side=reverse,carry=reset)"],
    "frugal": [
        "frugal(update_gap=3)",
        "frugal(update_gap=3,state=8bit)",
        "frugal(projection=rows,update_gap=3,carry=project)",
        "frugal(projection=blocks,density=0.5,update_gap=3)",
        "frugal(projection=randk,update_gap=3)",
        "frugal(projection=svd,update_gap=3)",
        "frugal(projection=dct,update_gap=3,carry=project)",
        "frugal(projection=random,update_gap=3,free=sgd)",
    ],
    "galore": [
        "galore(rank=4,update_gap=3)",
        "galore(rank=4,update_gap=3,basis=randomized,side=left)",
        "galore(rank=4,update_gap=3,basis=power,side=reverse,carry=project)",
        "galore(rank=4,update_gap=3,side=full)",
        "galore(rank=4,update_gap=3,basis=power,products=bf16,carry=project)",
        "galore(rank=4,update_gap=3,side=full,products=bf16)",
    ],
    "gradnormlorp": ["gradnormlorp(rank=4,update_gap=3)", "gradnormlorp(rank=4,update_gap=3,side=full)"],
    "id3": ["id3(density=0.2,steps=3)", "id3(density=0.5,steps=2,exp=1.0,state=8bit)"],
    "ldadam": ["ldadam(rank=4)", "ldadam(rank=4,start=randomized,feedback=4bit,state=bf16)"],
    "lift": ["lift(rank=2,filter_rank=4,update_gap=3)", "lift(rank=2,update_gap=3,basis=randomized,state=bf16)"],
    "lion": ["lion", "lion(state=8bit)"],
    "lisa": ["lisa(update_gap=3)", "lisa(layers=1,update_gap=3,state=8bit)"],
    "q-galore": ["q-galore(rank=4,update_gap=3)", "q-galore(rank=5,update_gap=2,window=1,group=7,basis=power)"],
    "schedule-free": ["schedule-free", "schedule-free(state=8bit)"],
    "sgd": ["sgd", "sgd(momentum=0.9)"],
    "signsgd": ["signsgd"],
}
ALL_CALLS = [call for calls in CALLS.values() for call in calls]
assert CALLS.keys() == OPTIMIZERS.keys(), "every row needs a call"


class Net(torch.nn.Module):
    """Embedding, three layers, a norm, a head."""

    def __init__(self, width: int = 16, vocabulary: int = 20) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, width)
        self.layers = torch.nn.ModuleList(
            [torch.nn.Linear(width, 2 * width), torch.nn.Linear(2 * width, width), torch.nn.Linear(width, width)]
        )
        self.norm = torch.nn.LayerNorm(width)
        self.lm_head = torch.nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return self.lm_head(self.norm(hidden))

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(tokens).flatten(0, 1), (tokens * 7 + 3).flatten() % 20)


def net(seed: int = 0, width: int = 16) -> Net:
    torch.manual_seed(seed)
    return Net(width)


def batch(step: int) -> torch.Tensor:
    return torch.randint(20, (4, 8), generator=torch.Generator().manual_seed(step))


def parse_layer(name: str) -> int:
    """Number of the layer that is in a name of ``Net``, which has one stack; -1 outside of it."""
    path = find_layer_path(name)
    return int(path.rpartition(".")[2]) if path else -1


def train(model: Net, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        optimizer.zero_grad()
        loss = model.loss(batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    return losses


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
