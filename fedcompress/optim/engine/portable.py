"""State dicts that torch.distributed.checkpoint can take apart, store and put together again.

It wants ``state`` by the number of the parameter, gives it back by the parameter's name, and loads only into tensors
that have the right shapes before. States of rules have no shapes that are known before: they are sparse, packed, or
absent for layers that are not active, and a matrix's is on one rank. So each parameter has one value of bytes here,
which has its state from all ranks, and which any number of ranks can take up.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedcompress.errors import StateError
from fedcompress.optim.units import list_units

STATE = "state"
PIECE = 1 << 30  # largest number of bytes in one value: torch's serialization has a limit of 4 GiB


class RankState(dict[str, Any]):
    """A rank's state is a state dict that makes torch's ``state`` when somebody asks for it by that name.

    Making it takes all ranks, where there are many. It is saved and copied as a plain dict with what it has by then.

    Args:
        content: what the state dict has.
        make_state: makes ``state``; None in a copy, which has none.
    """

    def __init__(self, content: Mapping[str, Any], make_state: Callable[[], dict[int, Any]] | None = None) -> None:
        super().__init__(content)
        self._make_state = make_state

    def __missing__(self, key: str) -> Any:
        if key != STATE or self._make_state is None:
            raise KeyError(key)
        self[STATE] = self._make_state()
        return self[STATE]

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter(self.items())


def write_portable_state(whole: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
    """Write a state of all ranks in torch's form.

    Args:
        whole: what ``combine_rank_states`` returned.
        groups: parameter groups of the optimizer.

    Returns:
        By the number of the parameter, counted over the groups: ``bytes`` is a list of byte strings, and ``place`` a
        float32 tensor of shape (1,) on the parameter's device, from which torch reads where to load to.

    Raises:
        StateError: the groups hold partitions, as under ZeRO.
    """
    import torch

    header = {key: whole[key] for key in ("fedcompress", "seed", "epoch")}
    state: dict[int, Any] = {}
    for group in groups:
        if len(group["params"]) != len(group["names"]):
            rule = "cannot be had from partitions: save optimizer.whole_state_dict()"
            raise StateError(f"optimizer state: torch's form of {group['names'][0]} and others: {rule}")
        names: dict[str, list[str]] = {}
        for unit in list_units(group):
            names.setdefault(unit.parameter, []).append(unit.name)
        for parameter, own in zip(group["params"], names.values(), strict=True):
            memory = {name: whole["memory"][name] for name in own if name in whole["memory"]}
            buffer = io.BytesIO()
            torch.save({**header, "memory": memory}, buffer)
            content = buffer.getvalue()
            pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
            state[len(state)] = {"bytes": pieces, "place": torch.zeros(1, device=parameter.device)}
    return state


def read_portable_state(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Read a state dict in torch's form, with parameters by name or number; others are returned as they are.

    Args:
        state_dict: what an optimizer was asked to load.

    Returns:
        A state dict of whole parameters, as ``combine_rank_states`` returns it.

    Raises:
        StateError: the state is of another optimizer, or is damaged.
    """
    import torch

    if "fedcompress" in state_dict or STATE not in state_dict:
        return dict(state_dict)
    combined: dict[str, Any] = {"memory": {}, "param_groups": state_dict["param_groups"]}
    for name, entry in state_dict[STATE].items():
        if not isinstance(entry, Mapping) or "bytes" not in entry:
            raise StateError(f"optimizer state: {name}: must have bytes of this optimizer: this is of another one")
        try:
            buffer = io.BytesIO(b"".join(entry["bytes"]))
            content = torch.load(buffer, map_location="cpu", weights_only=True)
            combined["memory"].update(content.pop("memory"))
        except Exception as error:  # torch raises errors of many kinds
            raise StateError(f"optimizer state: {name}: must be what was saved: {error}") from error
        combined.update(content)
    return combined
