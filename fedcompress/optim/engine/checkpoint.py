"""Checkpoints hold the state of an optimizer, and this module brings them to other numbers of ranks.

An entry is the state of one parameter on one rank, a dict with these keys:

* ``start``, ``numel``: the run of entries that the rank has, as in ``ShardInfo``;
* ``shape``: shape of the whole parameter, as a list;
* ``before``: how many of the parameter's steps were made before the epoch, as ``StepContext.steps_before``;
* ``state``: the packed state, with the number of the last ``step`` beside the rule's own keys.

Entries of all ranks combine to whole ones, and a whole one is cut to whatever a rank has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedcompress.errors import StateError
from fedcompress.optim.base import MATRIX, OptimizerRule, Reshardable, ShardInfo, State
from fedcompress.optim.state.moment_storage import choose_store, move_to_device, pack_moment, unpack_moment
from fedcompress.optim.table import parse_optimizer
from fedcompress.optim.units import list_units

FORMAT = 1  # version of the state dict, under the key ``fedcompress``
Entry = dict[str, Any]


def pack_state(rule: OptimizerRule, state: State, shard: ShardInfo, step: int) -> State:
    """Pack the moments of a rule's new state as they are stored between steps.

    Args:
        rule: the rule that returned the state.
        state: its state, with moments in float32.
        shard: the shard that it belongs to.
        step: number of the step that was made.

    Returns:
        The packed state, with the step under ``step``.
    """
    sizes = rule.sizes(shard.shape)
    packed = dict(state)
    for key, signed in rule.moments.items():
        if key in state:
            store = choose_store(rule.state, sizes[key])
            packed[key] = pack_moment(state[key], store, signed=signed, shard=shard, step=step, key=key)
    return packed | {"step": step}


def unpack_state(rule: OptimizerRule, packed: Mapping[str, Any]) -> State:
    """Return a packed state with its moments in float32, and the rest as it is."""
    return {
        key: unpack_moment(value, signed=rule.moments[key]) if key in rule.moments else value
        for key, value in packed.items()
    }


def build_entry(shard: ShardInfo, steps_before: int, packed: State) -> Entry:
    """Build the checkpoint entry of a shard.

    Args:
        shard: the shard that the state belongs to.
        steps_before: how many of the parameter's steps were made before the epoch.
        packed: the packed state.

    Returns:
        A dict with the keys that the module describes.
    """
    place = {"start": shard.start, "numel": shard.numel, "shape": list(shard.shape)}
    return {**place, "before": steps_before, "state": packed}


def extract_state(rule: OptimizerRule, entry: Entry, shard: ShardInfo) -> State:
    """Return the state of a shard from a checkpoint entry of just that shard, or of the whole parameter.

    Args:
        rule: the rule that the state is of.
        entry: the checkpoint entry.
        shard: the shard whose state is needed.

    Returns:
        The packed state if the entry is of that shard, else a state with moments in float32.

    Raises:
        StateError: the entry is of another shape, or of another part of the parameter.
    """
    if tuple(entry["shape"]) != shard.shape:
        raise StateError(f"optimizer state: {shard.name}: shape {entry['shape']}: must be {list(shard.shape)}")
    start = entry["start"]
    numel = entry["numel"]
    if (start, numel) == (shard.start, shard.numel):
        return dict(entry["state"])
    if numel != shard.total:
        text = f"has entries {start} to {start + numel}, and {shard.start} to {shard.start + shard.numel} are needed"
        raise StateError(f"optimizer state: {shard.name}: {text}: combine the states of all ranks first")
    state = unpack_state(rule, entry["state"])
    if rule.placement == MATRIX:
        return state
    if isinstance(rule, Reshardable):
        sliced: State = rule.slice_state(state, replace(shard, start=0, numel=shard.total), shard)
        return sliced
    cut = slice(shard.start, shard.start + shard.numel)
    return {key: value.reshape(-1)[cut] if key in rule.moments else value for key, value in state.items()}


def combine_rank_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Combine the state dicts of all ranks into one of whole parameters.

    Raises:
        StateError: the state dicts are not of one run, or a part of a parameter is missing.
    """
    if not states or any(s.get("fedcompress") != FORMAT for s in states):
        raise StateError(f"optimizer state: must be state dicts of format {FORMAT}, of all ranks")
    ranks = sorted(state.get("rank", 0) for state in states)
    if states[0].get("ranks", 1) > 1 and ranks != list(range(states[0]["ranks"])):
        raise StateError(f"optimizer state: ranks {ranks}: must be each of {states[0]['ranks']} once")
    groups = states[0]["param_groups"]
    rules = {unit.name: group["rule"] for group in groups for unit in list_units(group)}
    entries_by_name: dict[str, list[Entry]] = {}
    for state in states:
        if [g["rule"] for g in state["param_groups"]] != [g["rule"] for g in groups]:
            raise StateError("optimizer state: rules differ between the ranks: must be of one run")
        for name, entry in state["memory"].items():
            entries_by_name.setdefault(name, []).append(entry)
    memory = {
        name: _join_entries(name, parse_optimizer(rules[name]), entries) for name, entries in entries_by_name.items()
    }
    time = {"seed": states[0]["seed"], "epoch": states[0]["epoch"]}
    return {"fedcompress": FORMAT, **time, "memory": memory, "param_groups": groups}


def _join_entries(name: str, rule: OptimizerRule, entries: list[Entry]) -> Entry:
    """Join the entries of all ranks to one of the whole parameter; a whole one among them is taken as it is.

    Of replicas of a part, one is taken.
    """
    import torch

    total = math.prod(entries[0]["shape"])
    for entry in entries:
        if entry["numel"] == total:
            return entry
    entries = sorted({e["start"]: e for e in entries if e["numel"]}.values(), key=lambda e: int(e["start"]))
    ends = [e["start"] + e["numel"] for e in entries]
    if [0, *ends] != [*(e["start"] for e in entries), total]:
        raise StateError(
            f"optimizer state: {name}: parts end at {ends} of {total}: must follow each other; a rank lacks"
        )
    states = [unpack_state(rule, move_to_device(e["state"], "cpu")) for e in entries]  # each may be on its own GPU
    joined = {}
    for key, value in states[0].items():
        joined[key] = torch.cat([s[key] for s in states if key in s]) if torch.is_tensor(value) else value
    return {**entries[0], "start": 0, "numel": total, "state": joined}
