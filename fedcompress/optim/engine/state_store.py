"""The state store holds what the rules of one rank keep between steps, and follows rounds and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedcompress.optim.base import OptimizerRule, ShardInfo, State, StepContext
from fedcompress.optim.engine.checkpoint import Entry, build_entry, extract_state
from fedcompress.optim.state.moment_storage import count_bytes, move_to_device


class StateStore:
    """A state store holds packed states by the name of the parameter.

    States that came from a checkpoint stay as they were loaded until their parameter is stepped, since only then it is
    known which shard of the parameter this rank has, and on which device.

    Attributes:
        memory: packed states of the parameters that were stepped, as ``pack_state`` returns them.
        epoch: number of the round.
    """

    def __init__(self) -> None:
        self.memory: dict[str, State] = {}
        self.epoch = 0
        self._shards: dict[str, ShardInfo] = {}  # which shard each state in ``memory`` is of
        self._loaded: dict[str, Entry] = {}  # entries of a checkpoint that no step has used yet
        self._steps_before: dict[str, int] = {}  # steps of each parameter before the epoch; 0 where it is missing

    def build_context(self, name: str, step: int, lr: float, weight_decay: float) -> StepContext:
        """Build the context of one step of a parameter.

        Args:
            name: name of the parameter.
            step: number of its step, 1 for the first.
            lr: learning rate.
            weight_decay: decoupled weight decay.

        Returns:
            The context, in the round that the store is in.
        """
        steps_before = self._steps_before.get(name, 0)
        return StepContext(step=step, lr=lr, weight_decay=weight_decay, epoch=self.epoch, steps_before=steps_before)

    def take(self, rule: OptimizerRule, shard: ShardInfo, device: Any) -> State:
        """Return the packed state of a shard for its next step; a loaded one is used up, and copied to the device.

        Args:
            rule: the rule of the parameter.
            shard: what this rank has of it.
            device: device of the gradient.

        Returns:
            The packed state; empty before the first step.
        """
        if shard.name in self._loaded:
            loaded = extract_state(rule, self._loaded.pop(shard.name), shard)
            copied: State = move_to_device(loaded, device, copy=True)
            return copied
        return self.memory.get(shard.name, {})

    def peek(self, rule: OptimizerRule, shard: ShardInfo) -> State:
        """Return the packed state of a shard as it is, and leave it there; empty before the first step."""
        if shard.name in self._loaded:
            return extract_state(rule, self._loaded[shard.name], shard)
        return self.memory.get(shard.name, {})

    def put(self, shard: ShardInfo, packed: State) -> None:
        """Store the packed state of a shard after its step."""
        self.memory[shard.name] = packed
        self._shards[shard.name] = shard

    def drop_loaded(self, names: Iterable[str]) -> None:
        """Drop loaded states of parameters that were stepped, which other ranks have used."""
        for name in names:
            self._loaded.pop(name, None)

    def start_round(self, epoch: int, *, reset: bool) -> None:
        """Begin a round, and drop all states if they are to be reset."""
        if reset:
            self._clear()
        states = {name: entry["state"] for name, entry in self._loaded.items()} | self.memory
        self._steps_before = {name: state["step"] for name, state in states.items()}
        self.epoch = epoch

    def export_entries(self) -> dict[str, Entry]:
        """Return the checkpoint entries of all states, by parameter; later steps write to their tensors."""
        loaded = {n: {**entry, "before": self._steps_before.get(n, 0)} for n, entry in self._loaded.items()}
        stepped = {
            name: build_entry(self._shards[name], self._steps_before.get(name, 0), packed)
            for name, packed in self.memory.items()
        }
        return loaded | stepped

    def load_entries(self, entries: dict[str, Entry], epoch: int) -> None:
        """Replace all states by those of checkpoint entries, whose tensors are only read."""
        self._clear()
        self._loaded = dict(entries)
        self._steps_before = {name: entry["before"] for name, entry in entries.items()}
        self.epoch = epoch

    def _clear(self) -> None:
        self.memory.clear()
        self._shards.clear()
        self._loaded.clear()

    def count_bytes(self) -> int:
        """Return the bytes of the states of parameters that were stepped."""
        return sum(count_bytes(packed) for packed in self.memory.values())
