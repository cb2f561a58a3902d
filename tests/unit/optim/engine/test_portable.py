"""torch.distributed.checkpoint takes the state of every rule, and gives it back."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from fedcompress.errors import StateError
from fedcompress.optim import build_optimizer
from fedcompress.optim.engine import portable
from tests.unit.optim.models import CALLS, net, state, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
FIRST = [calls[0] for calls in CALLS.values()]


def half_trained(call: str) -> tuple[Any, Any]:
    model = net()
    optimizer = build_optimizer(model, call, lr=1e-2, weight_decay=0.1)
    train(model, optimizer, 0, 4)
    return model, optimizer


def fresh(model: Any, call: str) -> tuple[Any, Any]:
    again = net(1)
    again.load_state_dict(model.state_dict())
    return again, build_optimizer(again, call, lr=5e-3, weight_decay=0.1)


def check_they_end_alike(first: tuple[Any, Any], second: tuple[Any, Any]) -> None:
    for model, optimizer in (first, second):
        train(model, optimizer, 4, 9)
    ours, theirs = state(first[0]), state(second[0])
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("call", FIRST)
def test_a_checkpoint_on_disk_goes_on(call: str, tmp_path: Path) -> None:
    """Into an optimizer that has no state, and of which torch asks for the form first."""
    model, optimizer = half_trained(call)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path)
    again, second = fresh(model, call)
    content = {"optimizer": get_optimizer_state_dict(again, second)}
    dcp.load(content, checkpoint_id=tmp_path)
    set_optimizer_state_dict(again, second, content["optimizer"])
    assert second.param_groups[0]["lr"] == 1e-2
    check_they_end_alike((model, optimizer), (again, second))


@pytest.mark.parametrize(
    "call", ["frugal(update_gap=3,state=8bit)", "galore(rank=4,update_gap=3)", "lisa(update_gap=3)"]
)
@pytest.mark.parametrize("flags", [{"cpu_offload": True}, {"full_state_dict": True, "cpu_offload": True}])
def test_options_of_state_dicts(call: str, flags: dict[str, bool]) -> None:
    options = StateDictOptions(**flags)
    model, optimizer = half_trained(call)
    buffer = io.BytesIO()
    torch.save(get_optimizer_state_dict(model, optimizer, options=options), buffer)
    buffer.seek(0)
    again, second = fresh(model, call)
    set_optimizer_state_dict(again, second, torch.load(buffer, weights_only=True), options=options)
    check_they_end_alike((model, optimizer), (again, second))


@pytest.mark.parametrize("call", FIRST)
def test_being_asked_changes_nothing(call: str) -> None:
    """torch makes a step with rates and gradients of 0 before it asks, also in the middle of training."""
    asked, left_alone = half_trained(call), half_trained(call)
    asked[1].zero_grad()
    get_optimizer_state_dict(*asked)
    assert asked[1].calls == left_alone[1].calls
    check_they_end_alike(asked, left_alone)


def test_large_states_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "PIECE", 700)
    model, optimizer = half_trained("adamw")
    given = get_optimizer_state_dict(model, optimizer)
    pieces = [len(entry["bytes"]) for entry in given["state"].values()]
    assert max(pieces) > 3
    again, second = fresh(model, "adamw")
    set_optimizer_state_dict(again, second, given)
    check_they_end_alike((model, optimizer), (again, second))


def test_a_state_dict_is_saved_and_copied_as_it_was() -> None:
    """torch's form is made only for those who ask for it."""
    _, optimizer = half_trained("adamw")
    given = optimizer.state_dict()
    assert "state" not in given
    buffer = io.BytesIO()
    torch.save(given, buffer)
    buffer.seek(0)
    for copied in (torch.load(buffer, weights_only=True), copy.deepcopy(given), type(given)(dict(given))):
        assert set(copied) == set(given)
        with pytest.raises(KeyError):
            copied["state"]
    with pytest.raises(KeyError):
        given["other"]


def test_what_is_of_another_optimizer_or_damaged_is_refused() -> None:
    model, optimizer = half_trained("adamw")
    theirs = torch.optim.AdamW(model.parameters())
    train(model, theirs, 0, 1)
    with pytest.raises(StateError, match="of another one"):
        optimizer.load_state_dict(theirs.state_dict())
    given = get_optimizer_state_dict(model, optimizer)
    name = next(iter(given["state"]))
    given["state"][name]["bytes"] = [given["state"][name]["bytes"][0][:-30]]
    with pytest.raises(StateError, match=f"{name}: must be what was saved"):
        optimizer.load_state_dict(given)


def test_partitions_have_no_form_of_torch() -> None:
    _, optimizer = half_trained("adamw")
    for group in optimizer.param_groups:
        group["params"] = group["params"][:1]
    with pytest.raises(StateError, match="whole_state_dict"):
        portable.write_portable_state(optimizer.whole_state_dict(), optimizer.param_groups)
