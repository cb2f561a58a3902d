"""The torch optimizer that runs rules, whatever shards the parameters. Import it from functions: it imports torch."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedcompress.errors import ConfigError, NonFiniteError, StateError
from fedcompress.optim.base import MATRIX, Decaying, Rule, ShardInfo, State, check_choice, survives_rounds
from fedcompress.optim.engine.checkpoint import (
    FORMAT,
    Entry,
    combine_rank_states,
    entry_of,
    packed_state,
    state_for,
    unpacked_state,
)
from fedcompress.optim.engine.owners import Exchange, owners_of, waves
from fedcompress.optim.engine.shards import Shard, shards_of
from fedcompress.optim.state.moment_storage import bytes_of, placed
from fedcompress.optim.table import parse_optimizer

ROUND_STATES = ("reset", "keep")


class LowMemoryOptimizer(torch.optim.Optimizer):  # type: ignore[misc]
    """Runs one rule for each group.

    It steps whole parameters, ZeRO's flat partitions and FSDP2's DTensors. Groups have ``names``
    and ``shapes`` of their parameters and the ``rule`` as text, beside ``lr`` and ``weight_decay``.
    State is kept by the name of the parameter, on the rank where it is needed, in ``memory``; ``state`` stays empty.

    Args:
        groups: parameter groups.
        lr: default.
        weight_decay: decoupled; default.
        seed: of everything that rules draw.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, lr: float, weight_decay: float = 0.0, seed: int = 0):
        super().__init__(list(groups), {"lr": lr, "weight_decay": weight_decay})
        self._originals = {
            name: weakref.ref(p) for g in self.param_groups for name, p in zip(g["names"], g["params"], strict=True)
        }
        self._rules = {g["rule"]: parse_optimizer(g["rule"]) for g in self.param_groups}
        self._parts, self._seed, self._epoch = _parts(self.param_groups, seed), seed, 0
        self._matrices = {
            n: self._parts[n].shape
            for g in self.param_groups
            if self._rules[g["rule"]].placement == MATRIX
            for n in g["names"]
        }
        self._exchanges: dict[tuple[str, ...], Exchange] = {}
        self._here: dict[str, ShardInfo] = {}  # of what memory holds
        self._loaded: dict[str, Entry] = {}
        self._called = False
        self.fused = False  # steps are made in the backward pass
        self.memory: dict[str, State] = {}
        self.calls: Counter[str] = Counter()  # how often a rule ran on a parameter, here
        self.active_layers: set[int] | None = None  # others are not stepped; None: all are, as is what is in no layer

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group.

        Raises:
            NonFiniteError: a gradient has NaN or infinity; then no parameter of this call has changed.
            TrainingError: the gradients are sparse, or sharded in a way that is not known.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.fused:
            return loss
        resolved = [(g, *shards_of(g, self._living())) for g in self.param_groups if g["params"]]
        stepped = self._agreed([n for _, names, _ in resolved for n in names], [s for _, _, ss in resolved for s in ss])
        for group, names, shards in resolved:
            self._step_group(group, names, shards, stepped)
        for name in stepped:
            self._loaded.pop(name, None)
        return loss

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step_one(self, group: dict[str, Any], name: str, parameter: Any) -> None:
        """One step of one whole parameter, for fused backward.

        Raises:
            NonFiniteError: its gradient has NaN or infinity.
        """
        shards = [Shard(name, 0, self._parts[name].total, parameter, 0)]
        self._step_group(group, [name], shards, self._agreed([name], shards))

    def _step_group(
        self, group: dict[str, Any], names: Sequence[str], shards: Sequence[Shard], stepped: set[str]
    ) -> None:
        rule = self._rules[group["rule"]]
        rates = {"lr": float(group["lr"]), "weight_decay": group["weight_decay"]}
        self._parts.update({n: replace(self._parts[n], **rates) for n in names})
        if isinstance(rule, Decaying):
            group = group | {"weight_decay": 0.0}
        if rule.placement == MATRIX:
            self._step_matrices(group, rule, names, shards, stepped)
        else:
            self._step_shards(group, rule, [s for s in shards if s.name in stepped])

    def _living(self) -> dict[str, Any]:
        return {name: p for name, ref in self._originals.items() if (p := ref()) is not None}

    def _agreed(self, names: Sequence[str], shards: Sequence[Shard]) -> set[str]:
        """Names of active parameters that have a gradient on some rank; none in a rehearsal.

        All ranks find the same, or all raise: else some would wait for ever for others that have no entries of a
        parameter, and so cannot see its gradient.
        """
        bad = _not_finite([(s.name, g) for s in shards if (g := s.raw_grad()) is not None])
        here = {s.name for s in shards if s.home.grad is not None}
        found = [float(len(bad)), float(not self._may_rehearse(shards)), *(float(n in here) for n in names)]
        if _world() > 1:
            flags = torch.tensor(found, device=_device(shards))
            torch.distributed.all_reduce(flags)
            found = flags.tolist()
        if found[0]:
            raise NonFiniteError(f"gradient: {bad[0] if bad else 'on another rank'}: must be finite")
        if not found[1]:
            return set()
        return {n for n, count in zip(names, found[2:], strict=True) if count and self._is_active(n)}

    def _may_rehearse(self, shards: Sequence[Shard]) -> bool:
        """DeepSpeed's 16-bit optimizers of stage 0 step once on zeros when made, for their states to be allocated."""
        if self._called:
            return False
        self._called = True
        living = self._living()
        copies = all(s.home is not living.get(s.name) and s.home.shape == self._parts[s.name].shape for s in shards)
        return copies and all((g := s.raw_grad()) is not None and not bool(g.any()) for s in shards)

    def _is_active(self, name: str) -> bool:
        layer = self._parts[name].layer
        return self.active_layers is None or layer < 0 or layer in self.active_layers

    def states(self) -> Iterator[tuple[Rule, Shard, State]]:
        """What this rank has of each parameter, with its rule and its state as that is kept."""
        for group in self.param_groups:
            rule = self._rules[group["rule"]]
            for shard in shards_of(group, self._living())[1] if group["params"] else ():
                kept = self.memory.get(shard.name, {})
                if shard.name in self._loaded:
                    part = replace(self._parts[shard.name], start=shard.start, numel=shard.numel)
                    kept = state_for(rule, self._loaded[shard.name], part)
                yield rule, shard, kept

    def is_of_model(self, shard: Shard) -> bool:
        """The model itself has these entries, not a copy of them."""
        return shard.home is self._living().get(shard.name)

    def _step_shards(self, group: dict[str, Any], rule: Rule, shards: Sequence[Shard]) -> None:
        for shard in shards:
            if (grad := shard.grad()) is not None:
                part = replace(self._parts[shard.name], start=shard.start, numel=shard.numel)
                shard.apply(self._update(rule, grad, part, shard.weight()), group["lr"], group["weight_decay"])

    def _step_matrices(
        self, group: dict[str, Any], rule: Rule, names: Sequence[str], shards: Sequence[Shard], stepped: set[str]
    ) -> None:
        """Gradients become float32 as their matrix has its turn, so that those of all are never held."""
        here, turns = {s.name: s for s in shards}, [n for n in names if n in stepped]
        if _world() == 1:
            for name in turns:
                shard, shape = here[name], self._parts[name].shape
                weight = shard.weight().float().view(shape) if rule.needs_weight else None
                delta = self._update(rule, shard.grad().view(shape), self._parts[name], weight)
                shard.apply(delta.reshape(-1), group["lr"], group["weight_decay"])
            return
        if not turns:
            return
        exchange = self._exchange(tuple(names), shards)
        for wave in waves(turns, exchange.owners):
            held = [here[n] for n in wave if n in here]
            whole = exchange.to_owners(wave, {s.name: _or_zeros(s) for s in held})
            weights: dict[str, Any] = {}
            if rule.needs_weight:
                weights = exchange.to_owners(wave, {s.name: s.weight().float() for s in held})
            deltas = {n: self._update(rule, g, self._parts[n], weights.get(n)) for n, g in whole.items()}
            for name, piece in exchange.from_owners(wave, deltas).items():
                shard = here[name]
                shard.apply(piece.to(shard.home.device), group["lr"], group["weight_decay"])

    def _exchange(self, names: tuple[str, ...], shards: Sequence[Shard]) -> Exchange:
        """Made once for each set of matrices: who has what, and who owns it."""
        if names not in self._exchanges:
            mine = {s.name: (s.start, s.numel) for s in shards}
            everyone: list[Any] = [None] * _world()
            torch.distributed.all_gather_object(everyone, mine)
            shapes = {n: self._parts[n].shape for n in names}
            self._exchanges[names] = Exchange(
                spans={n: [have.get(n, (0, 0)) for have in everyone] for n in names},
                shapes=shapes,
                owners=owners_of(self._matrices, _world()),
                rank=torch.distributed.get_rank(),
                replicated=all(have.get(n) == (0, self._parts[n].total) for have in everyone for n in names),
                device=_device(shards),
            )
        return self._exchanges[names]

    def _update(self, rule: Rule, grad: Any, part: ShardInfo, weight: Any) -> Any:
        """Run a rule on one parameter, and keep its new state.

        A matrix whose first gradient is 0, as that of LoRA's A, waits for one that says where to look.
        """
        kept = self.memory.get(part.name, {})
        if part.name in self._loaded:
            kept = placed(state_for(rule, self._loaded.pop(part.name), part), grad.device, copy=True)
        if rule.placement == MATRIX and not kept and not bool(grad.any()):
            return torch.zeros_like(grad)
        state = unpacked_state(rule, kept)
        step = state.pop("step", 0) + 1
        delta, new = rule.update(grad, state, step, part, weight)
        self.memory[part.name], self._here[part.name] = packed_state(rule, new, part, step), part
        self.calls[part.name] += 1
        return delta

    def new_round(self, epoch: int, *, state: str = "reset") -> None:
        """A new global state has arrived: bases and masks are drawn anew from ``epoch``.

        Args:
            epoch: number of the round; equal at all sites, so that they share bases.
            state: ``reset`` drops all state, ``keep`` leaves it to each rule's ``carry``.

        Raises:
            ConfigError: schedule-free cannot keep its state.
        """
        check_choice("optimizer.round-state", state, ROUND_STATES)
        if state == "keep" and not all(survives_rounds(rule) for rule in self._rules.values()):
            raise ConfigError(
                "optimizer.round-state", state, "must be reset with schedule-free: its z is of old weights"
            )
        if state == "reset":
            self.memory.clear()
            self._here.clear()
            self._loaded.clear()
        kept = {name: entry["state"] for name, entry in self._loaded.items()} | self.memory
        steps = {name: found["step"] for name, found in kept.items()}
        self._parts = {n: replace(p, epoch=epoch, before=steps.get(n, 0)) for n, p in self._parts.items()}
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """State of this rank, with the places that it is of. ``combine_rank_states`` joins those of all ranks."""
        memory = {name: entry_of(self._here[name], kept) for name, kept in self.memory.items()}
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        time = {"seed": self._seed, "epoch": self._epoch}
        return {"fedcompress": FORMAT, **time, "memory": self._loaded | memory, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state dict of this rank, or from one of whole parameters; its tensors are only read.

        Raises:
            StateError: it is of another rule or of other parameters.
        """
        if state_dict.get("fedcompress") != FORMAT:
            raise StateError(f"optimizer state: must be of format {FORMAT}: this is of another optimizer")
        groups = state_dict["param_groups"]
        for key in ("rule", "names", "shapes"):
            theirs, ours = ([_plain(g[key]) for g in gs] for gs in (groups, self.param_groups))
            if theirs != ours:
                raise StateError(f"optimizer state: {key}: {str(theirs)[:200]}: must be {str(ours)[:200]}")
        if state_dict["seed"] != self._seed:
            rule = f"must be {self._seed}: its selections would be others"
            raise StateError(f"optimizer state: seed: {state_dict['seed']}: {rule}")
        for group, loaded in zip(self.param_groups, groups, strict=True):
            group.update({k: v for k, v in loaded.items() if k != "params"})
        self._epoch = state_dict["epoch"]
        for name, entry in state_dict["memory"].items():
            self._parts[name] = replace(self._parts[name], epoch=self._epoch, before=entry["before"])
        self.memory.clear()
        self._here.clear()
        self._loaded = dict(state_dict["memory"])

    def whole_state_dict(self) -> dict[str, Any]:
        """The state of all ranks, with whole parameters, on the CPU if there are many; all ranks call it."""
        if _world() == 1:
            return combine_rank_states([self.state_dict()])
        everyone: list[Any] = [None] * _world()
        torch.distributed.all_gather_object(everyone, placed(self.state_dict(), "cpu"))
        return combine_rank_states(everyone)

    def state_bytes(self) -> int:
        """Bytes that the state takes here."""
        return sum(bytes_of(kept) for kept in self.memory.values())


def _parts(groups: Sequence[dict[str, Any]], seed: int) -> dict[str, ShardInfo]:
    found = {}
    layers = 1 + max((layer for group in groups for layer in group["layers"]), default=-1)
    for group in groups:
        count = len(group["names"])
        for index, (name, shape, layer) in enumerate(
            zip(group["names"], group["shapes"], group["layers"], strict=True)
        ):
            found[name] = ShardInfo(
                name=name, shape=tuple(shape), seed=seed, index=index, count=count, layer=layer, layers=layers
            )
    return found


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _or_zeros(shard: Shard) -> Any:
    """A gradient that other ranks have is 0 where there is none."""
    grad = shard.grad()
    return torch.zeros(shard.numel, device=shard.home.device) if grad is None else grad


def _not_finite(grads: Sequence[tuple[str, Any]]) -> list[str]:
    """Names of those that are not; the device is waited for once where all sums are, else for each gradient."""
    sums: dict[Any, list[Any]] = {}
    for _, grad in grads:
        sums.setdefault(grad.device, []).append(grad.sum().float())
    if all(bool(torch.isfinite(torch.stack(found)).all()) for found in sums.values()):
        return []
    return [name for name, grad in grads if not bool(torch.isfinite(grad).all())]


def _world() -> int:
    dist = torch.distributed
    return int(dist.get_world_size()) if dist.is_available() and dist.is_initialized() else 1


def _device(shards: Sequence[Shard]) -> Any:
    """Where collectives work: the current GPU under nccl."""
    if _world() > 1 and "nccl" in torch.distributed.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if _world() > 1 or not shards else shards[0].home.device
