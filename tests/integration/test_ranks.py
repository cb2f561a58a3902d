"""Ranks without DeepSpeed: some have no entries, some parameters no gradient, and nobody waits for ever."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from fedcompress.errors import NonFiniteError, StateError, TrainingError
from fedcompress.optim import build_optimizer, combine_rank_states
from fedcompress.optim.engine.optimizer import LowMemoryOptimizer

CALLS = ["galore(rank=1,update_gap=2)", "adamp", "frugal(update_gap=2)"]


class Model(torch.nn.Module):
    """``layers.1.weight`` has one row, so that a second rank of FSDP2 has none; ``layers.2`` is used at times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sides = [(6, 8), (8, 1), (6, 6)]
        self.layers = torch.nn.ModuleList([torch.nn.Linear(a, b, bias=False) for a, b in sides])

    def forward(self, x: torch.Tensor, used: set[int]) -> torch.Tensor:
        first = self.layers[2](x) if 2 in used else x
        second = self.layers[0](first)
        return (self.layers[1](torch.tanh(second)) if 1 in used else second).square().mean()


def train(prepared: torch.nn.Module, optimizer: LowMemoryOptimizer) -> None:
    """In turn, nothing but ``layers.0``, all but ``layers.2``, and all have a gradient."""
    for step, used in enumerate([{0}, {0, 1}, {0, 1, 2}, {0, 1}, {0}, {0, 1, 2}]):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        prepared(x, used).backward()
        optimizer.step()
        optimizer.zero_grad()


def rank_of(rank: int, world: int, folder: str) -> None:
    limit = timedelta(seconds=20)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world, timeout=limit)
    works = (
        replicated,
        by_rows,
        partly_by_rows,
        on_one_rank,
        loaded,
        not_finite,
        resumed,
        of_one_rank,
        on_every_rank,
        other_weights,
    )
    found = {work.__name__: work(rank) for work in works}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # all is written; a thread of torch's that outlives the interpreter would abort the process


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """What the first of two ranks gives."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_of, (2, str(folder)), nprocs=2)
    return torch.load(folder / "found.pt", weights_only=True)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: getattr(p.detach(), "full_tensor", p.detach)() for n, p in model.named_parameters()}


def replicated(rank: int) -> list[dict[str, torch.Tensor]]:
    found = []
    for call in CALLS:
        model = Model()
        train(model, build_optimizer(model, call, lr=1e-2, weight_decay=0.1))
        found.append(weights_of(model))
    return found


def on_every_rank(rank: int) -> list[bool]:
    """With ``replicate``, the state of each rank is that of all, and the steps are those of one process."""
    found = []
    for call in CALLS:
        model = Model()
        optimizer = build_optimizer(model, call, lr=1e-2, weight_decay=0.1, replicate=True)
        train(model, optimizer)
        gathered: list = [None, None]
        dist.all_gather_object(gathered, optimizer.state_dict()["memory"])
        alike = [gathered[0][n]["state"].keys() == entry["state"].keys() for n, entry in gathered[1].items()]
        found.append(gathered[0].keys() == gathered[1].keys() == weights_of(model).keys() and all(alike))
        again = build_optimizer(Model(), call, lr=1e-2, weight_decay=0.1, replicate=True)
        again.load_state_dict(optimizer.state_dict() | {"rank": 1 - rank})
        sharded = Model()
        fully_shard(sharded)
        other = build_optimizer(sharded, call, lr=1e-2, weight_decay=0.1, replicate=True)
        train(sharded, other)  # where weights are sharded, it changes nothing
        apart = [(a - weights_of(sharded)[n]).abs().max().item() for n, a in weights_of(model).items()]
        found.append(max(apart) < 1e-5)
    return found


def other_weights(rank: int) -> list[str]:
    """What is said where each rank has a part of its own under one name, and where it has other names."""
    found = []
    for make in (lambda: Model(), lambda: torch.nn.Sequential(*Model().layers[: rank + 1])):
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(rank)
        before = weights_of(model)
        optimizer = build_optimizer(model, CALLS[0], lr=1e-2)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        try:
            optimizer.step()
            found.append("")
        except TrainingError as error:
            found.append(str(error))
        assert all(torch.equal(before[n], w) for n, w in weights_of(model).items())
    return found


def by_rows(rank: int) -> list[dict[str, torch.Tensor]]:
    found = []
    for call in CALLS:
        model = Model()
        fully_shard(model)
        train(model, build_optimizer(model, call, lr=1e-2, weight_decay=0.1))
        found.append(weights_of(model))
    return found


def partly_by_rows(rank: int) -> list[dict[str, torch.Tensor]]:
    """FSDP2 leaves one parameter whole."""
    found = []
    for call in CALLS:
        model = Model()
        fully_shard(model, ignored_params={model.layers[0].weight})
        train(model, build_optimizer(model, call, lr=1e-2, weight_decay=0.1))
        found.append(weights_of(model))
    return found


def on_one_rank(rank: int) -> list[dict[str, torch.Tensor]]:
    """The second rank of FSDP2 has nothing at all."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    fully_shard(model)
    optimizer = build_optimizer(model, "signsgd", lr=0.5)
    for _ in range(2):
        model(torch.ones(4, 6)).sum().backward()
        optimizer.step()
    return [weights_of(model)]


def loaded(rank: int) -> list[bool]:
    """State of a parameter that had no gradient since is still there, of one that had is new, on both ranks."""
    model = Model()
    fully_shard(model)
    optimizer = build_optimizer(model, "adamw", lr=1e-2)
    train(model, optimizer)
    state = optimizer.whole_state_dict()
    optimizer.load_state_dict(state)
    model(torch.ones(4, 6), {0}).backward()
    optimizer.step()
    before, after = state["memory"], optimizer.whole_state_dict()["memory"]
    return [torch.equal(before[n]["state"]["m"], after[n]["state"]["m"]) for n, _ in model.named_parameters()]


def resumed(rank: int) -> list[bool]:
    """A run that goes on from the states of all ranks is the run that was not stopped."""
    found = []
    for call in CALLS:
        whole = Model()
        optimizer = build_optimizer(whole, call, lr=1e-2)
        train(whole, optimizer)
        weights, state = weights_of(whole), optimizer.whole_state_dict()
        weights = {n: w.clone() for n, w in weights.items()}
        train(whole, optimizer)
        again = Model()
        again.load_state_dict(weights)
        optimizer = build_optimizer(again, call, lr=1e-2)
        optimizer.load_state_dict(state)
        train(again, optimizer)
        found.append(all(torch.equal(weights_of(whole)[n], w) for n, w in weights_of(again).items()))
    return found


def of_one_rank(rank: int) -> list[str]:
    """What each rank says of the state that the first one saved, as libraries save it that ask one rank."""
    found = []
    for call in CALLS:
        optimizer = build_optimizer(Model(), call, lr=1e-2)
        states = [optimizer.state_dict()]
        dist.broadcast_object_list(states)
        optimizer.load_state_dict(states[0])  # nothing was stepped: there is nothing to lack
        model = Model()
        optimizer = build_optimizer(model, call, lr=1e-2)
        train(model, optimizer)
        gathered: list = [None, None]
        dist.all_gather_object(gathered, optimizer.state_dict())
        optimizer.load_state_dict(gathered[rank])
        said: list = [None, None]
        try:
            optimizer.load_state_dict(gathered[0])
            mine = ""
        except StateError as error:
            mine = str(error)
        dist.all_gather_object(said, mine)
        found += said
    return found


def not_finite(rank: int) -> list[bool]:
    """A gradient that is not finite on one rank stops all; so does one on the rank of a parameter alone."""
    found = []
    for bad in (0, 1):
        model = Model()
        optimizer = build_optimizer(model, CALLS[0], lr=1e-2)
        before = weights_of(model)
        model(torch.full((4, 6), float("nan") if rank == bad else 1.0), {0, 1}).backward()
        try:
            optimizer.step()
            stopped = torch.tensor(0.0)
        except NonFiniteError:
            stopped = torch.tensor(1.0)
        dist.all_reduce(stopped)
        same = all(torch.equal(before[n], w) for n, w in weights_of(model).items())
        found += [stopped.item() == 2, same]
    return found


@pytest.mark.parametrize("work", ["replicated", "by_rows", "partly_by_rows"])
def test_parameters_without_entries_or_gradients(work: str, found: dict[str, list]) -> None:
    for call, ours, theirs in zip(CALLS, found[work], replicated(0), strict=True):
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6, msg=lambda m, c=call: f"{c}: {m}")


def test_a_rank_without_anything(found: dict[str, list]) -> None:
    assert torch.equal(found["on_one_rank"][0]["0.weight"], torch.zeros(1, 6))


@pytest.mark.parametrize(("work", "expected"), [("loaded", [False, True, True]), ("not_finite", [True] * 4)])
def test_all_ranks_agree(work: str, expected: list[bool], found: dict[str, list]) -> None:
    assert found[work] == expected


def test_a_resume_from_the_states_of_all_ranks_changes_nothing(found: dict[str, list]) -> None:
    assert found["resumed"] == [True] * len(CALLS)


def test_the_state_of_one_rank_is_refused_by_those_that_it_lacks_matrices_of(found: dict[str, list]) -> None:
    galore, adamp, frugal = (found["of_one_rank"][i : i + 2] for i in (0, 2, 4))
    assert galore[0] == adamp[0] == "", "the first rank has what it steps"
    for said in (galore[1], adamp[1]):
        assert "is of rank 0 of 2, and lacks " in said
        assert "must be of all ranks: build with replicate=True, or save whole_state_dict()" in said
    assert frugal == ["", ""], "what needs no whole matrix has its state on every rank"


def test_parts_that_look_like_replicas_and_pipelines_are_refused(found: dict[str, list]) -> None:
    parts, pipeline = found["other_weights"]
    assert "layers.0.weight: the ranks have other weights" in parts
    assert "the ranks train other parameters, [1, 2] of them" in pipeline


def test_a_replicated_state_is_whole_on_every_rank(found: dict[str, list]) -> None:
    assert found["on_every_rank"] == [True] * 2 * len(CALLS)


def test_one_process_refuses_the_state_of_one_rank_of_two() -> None:
    model = Model()
    optimizer = build_optimizer(model, CALLS[1], lr=1e-2)
    train(model, optimizer)
    state = optimizer.state_dict()
    lost = [n for n, _ in model.named_parameters()][1:]
    part = {**state, "ranks": 2, "memory": {n: e for n, e in state["memory"].items() if n not in lost}}
    with pytest.raises(StateError, match="lacks 2 matrices that rank 0 steps"):
        build_optimizer(Model(), CALLS[1], lr=1e-2).load_state_dict(part)
    with pytest.raises(StateError, match=r"ranks \[0\]: must be each of 2 once"):
        combine_rank_states([part])
