"""Steps of rules that need whole matrices: on each rank that has them whole, or on the rank that owns each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedcompress.optim.base import Decaying, OptimizerRule, ShardInfo
from fedcompress.optim.engine.owners import Exchange, split_into_waves
from fedcompress.optim.engine.shards import Shard

if TYPE_CHECKING:
    from torch import Tensor

RunRule = Callable[[dict[str, Any], OptimizerRule, "Tensor", ShardInfo, "Tensor | None"], "Tensor"]


@dataclass(frozen=True)
class MatrixSteps:
    """Matrix steps are those of one parameter group.

    Args:
        group: parameter group of the optimizer.
        rule: its rule.
        parameters: describes the whole matrices, by name.
        run_rule: runs the rule on a gradient, and returns the direction.
    """

    group: dict[str, Any]
    rule: OptimizerRule
    parameters: Mapping[str, ShardInfo]
    run_rule: RunRule

    def step_whole(self, shards: Sequence[Shard], names: Sequence[str]) -> None:
        """Step matrices that are whole here; each gradient becomes float32 only when its matrix has its turn.

        Args:
            shards: what this rank has, all of each matrix.
            names: matrices to step, in their turns.
        """
        shard_by_name = {s.name: s for s in shards}
        for name in names:
            shard = shard_by_name[name]
            parameter = self.parameters[name]
            weight = shard.weight().float().view(parameter.shape) if self.rule.needs_weight else None
            grad = _read_grad(shard).view(parameter.shape)
            delta = self.run_rule(self.group, self.rule, grad, parameter, weight)
            apply_step(self.group, self.rule, shard, delta.reshape(-1))

    def step_owned(self, exchange: Exchange, shards: Sequence[Shard], names: Sequence[str]) -> None:
        """Step matrices on the ranks that own them; gradients become float32 wave by wave, never all at once.

        Args:
            exchange: moves the matrices to their owners and back.
            shards: what this rank has.
            names: matrices to step, in their turns; the same on all ranks.
        """
        shard_by_name = {s.name: s for s in shards}
        for wave in split_into_waves(names, exchange.owners):
            shards_of_wave = [shard_by_name[n] for n in wave if n in shard_by_name]
            grads = exchange.to_owners(wave, {s.name: _read_grad(s) for s in shards_of_wave})
            weights: dict[str, Any] = {}
            if self.rule.needs_weight:
                weights = exchange.to_owners(wave, {s.name: s.weight().float() for s in shards_of_wave})
            deltas = {
                n: self.run_rule(self.group, self.rule, grad, self.parameters[n], weights.get(n))
                for n, grad in grads.items()
            }
            for name, piece in exchange.from_owners(wave, deltas).items():
                shard = shard_by_name[name]
                apply_step(self.group, self.rule, shard, piece.to(shard.tensor.device))


def apply_step(group: Mapping[str, Any], rule: OptimizerRule, shard: Shard, delta: Tensor) -> None:
    """Step a shard's weight along a direction; a rule that is ``Decaying`` has added its weight decay already.

    Args:
        group: parameter group, with ``lr`` and ``weight_decay``.
        rule: rule of the group.
        shard: what is stepped.
        delta: direction to go against, shape (shard.numel,).
    """
    shard.apply(delta, group["lr"], 0.0 if isinstance(rule, Decaying) else group["weight_decay"])


def _read_grad(shard: Shard) -> Tensor:
    """Return a shard's gradient, float32 and flat; zeros where only other ranks have one."""
    import torch

    grad = shard.grad()
    return torch.zeros(shard.numel, device=shard.tensor.device) if grad is None else grad
