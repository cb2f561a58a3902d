"""Optimizer state on its way to disk and to other numbers of ranks.

An entry is the state of one parameter on one rank: ``start``, ``numel``, ``shape``, steps ``before`` the
epoch, and the kept ``state``. Entries of all ranks combine to whole ones, and a whole one is cut to whatever a
rank has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedcompress.errors import StateError
from fedcompress.optim.base import MATRIX, Reshardable, Rule, ShardInfo, State
from fedcompress.optim.state.moment_storage import kind_for, pack, placed, unpack
from fedcompress.optim.table import parse_optimizer

FORMAT = 1
Entry = dict[str, Any]


def packed_state(rule: Rule, state: State, part: ShardInfo, step: int) -> State:
    """A rule's new state as it is kept, with the number of the step."""
    sizes, kept = rule.sizes(part.shape), dict(state)
    for key, signed in rule.moments.items():
        if key in state:
            kind = kind_for(rule.state, sizes[key])
            kept[key] = pack(state[key], kind, signed=signed, part=part, step=step, key=key)
    return kept | {"step": step}


def unpacked_state(rule: Rule, kept: Mapping[str, Any]) -> State:
    """Float32 moments of a kept state; the rest as it is."""
    return {k: unpack(v, signed=rule.moments[k]) if k in rule.moments else v for k, v in kept.items()}


def entry_of(part: ShardInfo, kept: State) -> Entry:
    """The entry of a part."""
    place = {"start": part.start, "numel": part.numel, "shape": list(part.shape)}
    return {**place, "before": part.before, "state": kept}


def state_for(rule: Rule, entry: Entry, part: ShardInfo) -> State:
    """The state of a part, of the entry of just that part or of a whole parameter.

    Raises:
        StateError: it is of another part.
    """
    if tuple(entry["shape"]) != part.shape:
        raise StateError(f"optimizer state: {part.name}: shape {entry['shape']}: must be {list(part.shape)}")
    kept, start, numel = entry["state"], entry["start"], entry["numel"]
    if (start, numel) == (part.start, part.numel):
        return dict(kept)
    if numel != math.prod(part.shape):
        text = f"has entries {start} to {start + numel}, and {part.start} to {part.start + part.numel} are needed"
        raise StateError(f"optimizer state: {part.name}: {text}: combine the states of all ranks first")
    state = unpacked_state(rule, kept)
    if rule.placement == MATRIX:
        return state
    whole = ShardInfo(name=part.name, shape=part.shape, seed=part.seed, index=part.index, count=part.count)
    if isinstance(rule, Reshardable):
        return rule.slice_state(state, whole, part)
    return {
        k: v.reshape(-1)[part.start : part.start + part.numel] if k in rule.moments else v for k, v in state.items()
    }


def combine_rank_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state dict with whole parameters, of those of all ranks.

    Raises:
        StateError: they are not of one run, or a part of a parameter is missing.
    """
    if not states or any(s.get("fedcompress") != FORMAT for s in states):
        raise StateError(f"optimizer state: must be state dicts of format {FORMAT}, of all ranks")
    groups = states[0]["param_groups"]
    rules = {name: group["rule"] for group in groups for name in group["names"]}
    found: dict[str, list[Entry]] = {}
    for state in states:
        if [g["rule"] for g in state["param_groups"]] != [g["rule"] for g in groups]:
            raise StateError("optimizer state: rules differ between the ranks: must be of one run")
        for name, entry in state["memory"].items():
            found.setdefault(name, []).append(entry)
    memory = {name: _joined(name, parse_optimizer(rules[name]), entries) for name, entries in found.items()}
    time = {"seed": states[0]["seed"], "epoch": states[0]["epoch"]}
    return {"fedcompress": FORMAT, **time, "memory": memory, "param_groups": groups}


def _joined(name: str, rule: Rule, entries: list[Entry]) -> Entry:
    import torch

    total = math.prod(entries[0]["shape"])
    for entry in entries:
        if entry["numel"] == total:
            return entry
    entries = sorted(entries, key=lambda e: e["start"])
    ends = [e["start"] + e["numel"] for e in entries]
    if [0, *ends] != [*(e["start"] for e in entries), total]:
        raise StateError(
            f"optimizer state: {name}: parts end at {ends} of {total}: must follow each other; a rank lacks"
        )
    states = [unpacked_state(rule, placed(e["state"], "cpu")) for e in entries]  # each may be on a GPU of its own
    joined = {k: torch.cat([s[k] for s in states if k in s]) if torch.is_tensor(v) else v for k, v in states[0].items()}
    return {**entries[0], "start": 0, "numel": total, "state": joined}
