"""``LowMemoryOptimizer`` is the torch optimizer that runs rules, whatever shards the parameters.

Import it inside of functions: the module imports torch.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fedcompress.errors import ConfigError, NonFiniteError, StateError, TrainingError
from fedcompress.optim.base import MATRIX, OptimizerRule, ShardInfo, State, check_choice, survives_rounds
from fedcompress.optim.engine.checkpoint import FORMAT, combine_rank_states, pack_state, unpack_state
from fedcompress.optim.engine.matrix_steps import MatrixSteps, apply_step
from fedcompress.optim.engine.owners import Exchange, assign_owners, build_exchange, warn_of_parts
from fedcompress.optim.engine.rank_checks import check_replicas, check_same_names
from fedcompress.optim.engine.ranks import (
    gather_objects,
    get_collective_device,
    get_rank,
    get_world_size,
    sum_over_ranks,
)
from fedcompress.optim.engine.rehearsal import is_rehearsal
from fedcompress.optim.engine.shards import Shard, cut_shards, find_units
from fedcompress.optim.engine.state_store import StateStore
from fedcompress.optim.engine.torch_contract import TorchContract
from fedcompress.optim.state.moment_storage import copy_tensors, move_to_device
from fedcompress.optim.table import parse_optimizer
from fedcompress.optim.units import count_slices, cut_names, list_units
from fedcompress.parameter_names import strip_wrappers

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger("fedcompress.optim")
MADE_OF_MODEL = ("params", "names", "shapes", "layers", "stacks", "rule")  # keys of a group that no state dict changes
ROUND_STATES = ("reset", "keep")  # what may become of the state when a round begins


class LowMemoryOptimizer(TorchContract):
    """A low-memory optimizer runs one rule for each parameter group.

    It steps whole parameters, ZeRO's flat partitions and FSDP2's DTensors. Beside ``lr`` and ``weight_decay``, groups
    have the ``names``, ``shapes`` and ``layers`` of their parameters and the ``rule`` as text. State is kept by the
    name of the parameter, on the rank where it is needed, in ``memory``; torch's ``state`` stays empty.

    Args:
        groups: parameter groups, as ``build_optimizer`` makes them.
        lr: learning rate of groups that have none of their own.
        weight_decay: decoupled weight decay of groups that have none of their own.
        seed: seed of everything that rules draw.
        replicate: whether each rank steps every matrix, and has its state, where all ranks hold all of it.

    Attributes:
        fused: whether steps are made in the backward pass; ``step`` then does nothing.
        calls: how often a rule ran on each parameter, on this rank.
        active_layers: layers that are stepped, beside the parameters in no layer; None steps all.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        seed: int = 0,
        replicate: bool = False,
    ):
        super().__init__(list(groups), {"lr": lr, "weight_decay": weight_decay, "averaged": False})
        self._originals = {
            name: weakref.ref(p) for g in self.param_groups for name, p in zip(g["names"], g["params"], strict=True)
        }
        self._rules = {g["rule"]: parse_optimizer(g["rule"]) for g in self.param_groups}
        self._parameters = _describe_parameters(self.param_groups, seed)
        self._matrices = _find_matrices(self.param_groups, self._rules)
        self._seed = seed
        self._replicate = replicate
        self._store = StateStore()
        self._exchanges: dict[tuple[str, ...], Exchange] = {}
        self._was_called = False
        self.fused = False
        self.calls: Counter[str] = Counter()
        self.active_layers: set[int] | None = None

    @property
    def memory(self) -> dict[str, State]:
        """Return the packed states on this rank, by the name of the parameter."""
        return self._store.memory

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of every group.

        Raises:
            NonFiniteError: a gradient has NaN or infinity; then no parameter of this call has changed.
            TrainingError: the gradients are sparse, or sharded in a way that is not known.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.fused:
            self.stepped_in_backward.clear()
            return loss
        if self.is_averaged:
            text = "the model has the averages of schedule-free: call optimizer.train() before the forward pass"
            raise TrainingError("averaged-weights", text)
        resolved = [(g, *find_units(g, self._find_living())) for g in self.param_groups if g["params"]]
        names = [name for _, group_names, _ in resolved for name in group_names]
        if not self._was_called:
            check_same_names(names)
        stepped = self._agree_on_stepped(names, [shard for _, _, shards in resolved for shard in shards])
        for group, group_names, shards in resolved:
            self._step_group(group, group_names, shards, stepped)
        self._store.drop_loaded(stepped)
        return loss

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step_parameter(self, group: dict[str, Any], name: str, parameter: Tensor) -> None:
        """Make one step of one whole parameter, for fused backward.

        Args:
            group: parameter group that it belongs to.
            name: name of the parameter.
            parameter: the parameter, with its gradient.

        Raises:
            NonFiniteError: its gradient has NaN or infinity.
        """
        counts = count_slices(group)
        names = cut_names([name], counts)
        shards = cut_shards([Shard(name, 0, parameter.numel(), parameter, 0)], counts, {name: parameter.shape})
        self._step_group(group, names, shards, self._agree_on_stepped(names, shards))

    def _step_group(
        self, group: dict[str, Any], names: Sequence[str], shards: Sequence[Shard], stepped: set[str]
    ) -> None:
        rule = self._rules[group["rule"]]
        if rule.placement != MATRIX:
            self._step_shards(group, rule, [s for s in shards if s.name in stepped])
            return
        turns = [n for n in names if n in stepped]
        matrices = MatrixSteps(group, rule, self._parameters, self._run_rule)
        if get_world_size() == 1:
            matrices.step_whole(shards, turns)
        elif turns:
            exchange = self._get_exchange(tuple(names), shards)
            if self._replicate and exchange.replicated:
                matrices.step_whole(shards, turns)
            else:
                matrices.step_owned(exchange, shards, turns)

    def _find_living(self) -> dict[str, Any]:
        """Return the parameters that the optimizer was made with, by name, where they still exist."""
        return {name: p for name, reference in self._originals.items() if (p := reference()) is not None}

    def _agree_on_stepped(self, names: Sequence[str], shards: Sequence[Shard]) -> set[str]:
        """Return the names of active parameters that have a gradient on some rank; none in a rehearsal.

        All ranks find the same names, or all raise. Otherwise some would wait for ever for others that have no entries
        of a parameter, and so cannot see its gradient.
        """
        bad = _find_non_finite([(s.name, grad) for s in shards if (grad := s.raw_grad()) is not None])
        with_grad = {s.name for s in shards if s.tensor.grad is not None}
        flags = [float(len(bad)), float(not self._is_rehearsal(shards)), *(float(n in with_grad) for n in names)]
        bad_count, real_count, *grad_counts = sum_over_ranks(flags, shards)
        if bad_count:
            raise NonFiniteError(f"gradient: {bad[0] if bad else 'on another rank'}: must be finite")
        if not real_count:
            return set()
        return {n for n, count in zip(names, grad_counts, strict=True) if count and self._is_active(n)}

    def _is_rehearsal(self, shards: Sequence[Shard]) -> bool:
        """Return whether this call of ``step`` is only to allocate states."""
        is_first = not self._was_called
        self._was_called = True
        return is_rehearsal(self.param_groups, shards, self._find_living(), is_first=is_first)

    def _is_active(self, name: str) -> bool:
        layer = self._parameters[name].layer
        return self.active_layers is None or layer < 0 or layer in self.active_layers

    def states(self) -> Iterator[tuple[OptimizerRule, Shard, State]]:
        """Yield the rule, the shard and the packed state of each parameter that this rank has entries of."""
        for group in self.param_groups:
            rule = self._rules[group["rule"]]
            for shard in find_units(group, self._find_living())[1] if group["params"] else ():
                yield rule, shard, self._store.peek(rule, _describe(self._parameters, shard))

    def is_model_weight(self, shard: Shard) -> bool:
        """Return whether the entries are the model's own, and not a copy of them."""
        return any(shard.tensor is parameter for parameter in self._find_living().values())

    def _step_shards(self, group: dict[str, Any], rule: OptimizerRule, shards: Sequence[Shard]) -> None:
        """Step the shards of an elementwise rule."""
        for shard in shards:
            if (grad := shard.grad()) is not None:
                delta = self._run_rule(group, rule, grad, _describe(self._parameters, shard), shard.weight())
                apply_step(group, rule, shard, delta)

    def _get_exchange(self, names: tuple[str, ...], shards: Sequence[Shard]) -> Exchange:
        """Return the exchange of a set of matrices, which is built at its first use."""
        if names not in self._exchanges:
            shapes = {n: self._parameters[n].shape for n in names}
            spans = {s.name: (s.start, s.numel) for s in shards}
            owners = assign_owners(self._matrices, get_world_size())
            self._exchanges[names] = build_exchange(shapes, spans, owners, get_collective_device(shards))
            if self._exchanges[names].replicated:
                check_replicas(shards)
        return self._exchanges[names]

    def _run_rule(
        self, group: dict[str, Any], rule: OptimizerRule, grad: Tensor, shard: ShardInfo, weight: Tensor | None
    ) -> Tensor:
        """Run a rule on one shard, store its new state, and return its direction.

        A matrix whose first gradient is 0, as that of LoRA's A, waits for one that says where to look.
        """
        packed = self._store.take(rule, shard, grad.device)
        if rule.placement == MATRIX and not packed and not bool(grad.any()):
            return torch.zeros_like(grad)
        state = unpack_state(rule, packed)
        step = state.pop("step", 0) + 1
        context = self._store.build_context(shard.name, step, float(group["lr"]), group["weight_decay"])
        delta, new_state = rule.update(grad, state, shard, context, weight)
        self._store.put(shard, pack_state(rule, new_state, shard, step))
        self.calls[shard.name] += 1
        return delta

    def new_round(self, epoch: int, *, state: str = "reset") -> None:
        """Begin a round with a new global state: bases and masks are drawn anew from ``epoch``.

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
        self._store.start_round(epoch, reset=state == "reset")
        self.is_averaged = False

    def export_state(self) -> dict[str, Any]:
        """Return copies of this rank's state with its place in each parameter, which later steps do not change."""
        places = itertools.count()
        groups = [{**g, "params": [next(places) for _ in g["params"]]} for g in self.param_groups]
        place = {"rank": get_rank(), "ranks": get_world_size(), "replicated": self._replicate}
        if not self._replicate:
            warn_of_parts(self._exchanges.values())
        state = {"fedcompress": FORMAT, **place, "seed": self._seed, "epoch": self._store.epoch}
        return {**state, "memory": copy_tensors(self._store.export_entries()), "param_groups": groups}

    def import_state(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of this rank or of whole parameters; another rule's or rank's is a ``StateError``."""
        state_dict = _strip_wrapped_names(state_dict)
        _check_state_dict(state_dict, self.param_groups, self._seed)
        _check_owners(state_dict, self._matrices, steps_all=self._replicate)
        for group in self.param_groups:
            for loaded in state_dict["param_groups"]:
                if not set(group["names"]).isdisjoint(loaded["names"]):
                    group.update({k: v for k, v in loaded.items() if k not in MADE_OF_MODEL})
        self._store.load_entries(state_dict["memory"], state_dict["epoch"])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: the groups with their parameters, the settings and the state."""
        settings = {key: self.defaults[key] for key in ("lr", "weight_decay")}
        settings |= {"seed": self._seed, "replicate": self._replicate}
        return {"groups": self.param_groups, "settings": settings, "content": self.export_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make this the optimizer that was copied, without its hooks; updates in the backward pass are off."""
        LowMemoryOptimizer.__init__(self, state["groups"], **state["settings"])
        self.import_state(state["content"])

    def whole_state_dict(self) -> dict[str, Any]:
        """Return the state of all ranks for whole parameters, on the CPU if there are many; all ranks call it."""
        if get_world_size() == 1:
            return combine_rank_states([self.export_state()])
        return combine_rank_states(gather_objects(move_to_device(self.export_state(), "cpu")))

    def state_bytes(self) -> int:
        """Return the bytes that the state takes on this rank."""
        return self._store.count_bytes()


def _describe_parameters(groups: Sequence[dict[str, Any]], seed: int) -> dict[str, ShardInfo]:
    """Describe the whole parameters, or slices of experts, of all groups, by name."""
    parameters = {}
    layers = 1 + max((layer for group in groups for layer in group["layers"]), default=-1)
    for group in groups:
        units = list_units(group)
        for index, unit in enumerate(units):
            parameters[unit.name] = ShardInfo(
                name=unit.name,
                shape=unit.shape,
                seed=seed,
                index=index,
                count=len(units),
                layer=unit.layer,
                layers=layers,
            )
    return parameters


def _find_matrices(groups: Sequence[dict[str, Any]], rules: Mapping[str, OptimizerRule]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all matrices that matrix rules step, by name."""
    matrices = {}
    for group in groups:
        if rules[group["rule"]].placement == MATRIX:
            matrices.update({unit.name: unit.shape for unit in list_units(group)})
    return matrices


def _describe(parameters: Mapping[str, ShardInfo], shard: Shard) -> ShardInfo:
    return replace(parameters[shard.name], start=shard.start, numel=shard.numel)


def _check_state_dict(state_dict: dict[str, Any], groups: Sequence[dict[str, Any]], seed: int) -> None:
    """Raise ``StateError`` unless a state dict is of this format, of parameters of this model, and of this seed.

    Parameters that were frozen when it was saved begin anew, which is said.
    """
    if state_dict.get("fedcompress") != FORMAT:
        raise StateError(f"optimizer state: must be of format {FORMAT}: this is of another optimizer")
    theirs, ours = _describe_places(state_dict["param_groups"]), _describe_places(groups)
    gone = [name for name in theirs if name not in ours]
    if gone:
        text = f"has {gone[0]}" + f" and {len(gone) - 1} more" * (len(gone) > 1)
        raise StateError(f"optimizer state: {text}, which are not trained here: must be of parameters of this model")
    for name, place in theirs.items():
        if place != ours[name]:
            raise StateError(f"optimizer state: {name}: rule and shape {place}: must be {ours[name]}")
    if new := [name for name in ours if name not in theirs]:
        LOG.warning("%d parameters are new, as %s: their states begin now", len(new), new[0])
    if state_dict["seed"] != seed:
        rule = f"must be {seed}: its selections would be others"
        raise StateError(f"optimizer state: seed: {state_dict['seed']}: {rule}")


def _check_owners(
    state_dict: dict[str, Any], matrices: Mapping[str, tuple[int, ...]], *, steps_all: bool = False
) -> None:
    """Raise ``StateError`` if this rank steps matrices whose states another rank had when the state was saved.

    Libraries that save one rank's state under data parallelism would else begin those matrices anew without a word.
    """
    rank, ranks = state_dict.get("rank", 0), state_dict.get("ranks", 1)
    if ranks == 1 or not state_dict["memory"] or state_dict.get("replicated"):
        return
    owners_then, owners_now = assign_owners(matrices, ranks), assign_owners(matrices, get_world_size())
    absent = [n for n in matrices if n not in state_dict["memory"]]
    mine = [n for n in absent if steps_all or owners_now[n] == get_rank()]
    missing = [n for n in mine if owners_then[n] != rank]
    if missing:
        text = f"is of rank {rank} of {ranks}, and lacks {len(missing)} matrices that rank {get_rank()} steps"
        rule = "must be of all ranks: build with replicate=True, or save whole_state_dict(), which all ranks call"
        raise StateError(f"optimizer state: {text}, as {missing[0]}: {rule}")


def _strip_wrapped_names(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict in which names are those of the model inside of what wrapped it when the state was saved."""
    if state_dict.get("fedcompress") != FORMAT:
        return state_dict
    groups = [
        {**group, "names": [strip_wrappers(name) for name in group["names"]]} for group in state_dict["param_groups"]
    ]
    memory = {strip_wrappers(name): entry for name, entry in state_dict["memory"].items()}
    return {**state_dict, "param_groups": groups, "memory": memory}


def _describe_places(groups: Sequence[dict[str, Any]]) -> dict[str, tuple[str, list[int]]]:
    """Return the rule and the shape of each parameter, by name."""
    return {
        name: (group["rule"], list(shape))
        for group in groups
        for name, shape in zip(group["names"], group["shapes"], strict=True)
    }


def _find_non_finite(grads: Sequence[tuple[str, Tensor]]) -> list[str]:
    """Return the names of gradients that have NaN or infinity.

    The device is waited for once if the sums of all gradients are finite, and else for each gradient.
    """
    sums: dict[Any, list[Tensor]] = {}
    for _, grad in grads:
        sums.setdefault(grad.device, []).append(grad.sum().float())
    if all(bool(torch.isfinite(torch.stack(totals)).all()) for totals in sums.values()):
        return []
    return [name for name, grad in grads if not bool(torch.isfinite(grad).all())]
