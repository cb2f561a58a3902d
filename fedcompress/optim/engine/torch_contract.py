"""Keeps what torch promises of every optimizer beside its steps: hooks around states, and groups."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch

from fedcompress.errors import ConfigError
from fedcompress.optim.base import OptimizerRule, State
from fedcompress.optim.engine.averaging import switch_weights
from fedcompress.optim.engine.portable import RankState, read_portable_state, write_portable_state
from fedcompress.optim.engine.shards import Shard


class TorchContract(torch.optim.Optimizer):  # type: ignore[misc]
    """Keeps torch's promises for an optimizer whose state is not in torch's ``state``.

    Attributes:
        stepped_in_backward: with fused backward, the parameters that were stepped since the last ``step``.
    """

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(groups, defaults)
        self.stepped_in_backward: set[str] = set()
        self._has_all_groups = True

    @property
    def is_averaged(self) -> bool:
        """Return whether the model has the averages of schedule-free; a checkpoint keeps that in the groups."""
        return any(group.get("averaged") for group in self.param_groups)

    @is_averaged.setter
    def is_averaged(self, value: bool) -> None:
        """Set whether the model has the averages."""
        for group in self.param_groups:
            group["averaged"] = value

    def train(self) -> None:
        """Give the model the weights that are stepped, for schedule-free; Trainer and accelerate call it."""
        switch_weights(self, averaged=False)

    def eval(self) -> None:
        """Give the model the averages of schedule-free, for evaluation and saving, until ``train``."""
        switch_weights(self, averaged=True)

    @abstractmethod
    def states(self) -> Iterator[tuple[OptimizerRule, Shard, State]]:
        """Yield the rule, the shard and the packed state of each parameter that this rank has entries of."""

    @abstractmethod
    def is_model_weight(self, shard: Shard) -> bool:
        """Return whether the entries are the model's own, and not a copy of them."""

    @abstractmethod
    def whole_state_dict(self) -> dict[str, Any]:
        """Return the state of all ranks; all ranks call it."""

    @abstractmethod
    def export_state(self) -> dict[str, Any]:
        """Return the state, without hooks."""

    @abstractmethod
    def import_state(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, whose tensors are only read, without hooks."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank with its place in each parameter; ``combine_rank_states`` joins all ranks'.

        torch.distributed.checkpoint finds torch's ``state`` in it, of all ranks, which then all must ask for it.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state: dict[str, Any] = RankState(self.export_state(), self._make_portable_state)
        for hook in self._optimizer_state_dict_post_hooks.values():
            state = hook(self, state) or state
        return state

    def _make_portable_state(self) -> dict[int, Any]:
        return write_portable_state(self.whole_state_dict(), self.param_groups)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state dict of this rank, or from one of whole parameters; its tensors are only read.

        Raises:
            StateError: it is of another rule or of other parameters.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        self.import_state(read_portable_state(state_dict))
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of ``build_optimizer``; parameters that are unfrozen later need a new optimizer.

        Raises:
            ConfigError: the optimizer has its groups.
        """
        if getattr(self, "_has_all_groups", False):
            rule = "cannot be added later: build the optimizer anew, and load the state_dict of this one"
            raise ConfigError("param_group", f"{len(param_group.get('params', ()))} parameters", rule)
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; with fused backward, a new step begins."""
        self.stepped_in_backward.clear()
        super().zero_grad(set_to_none)
