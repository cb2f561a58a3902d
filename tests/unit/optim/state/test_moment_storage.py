"""Values of a state on their way to another device."""

import torch

from fedcompress.optim.state.moment_storage import move_to_device


def test_a_loaded_state_follows_the_gradient_to_its_device() -> None:
    kept = {"m": torch.ones(3), "v": {"codes": torch.ones(3), "shape": [3]}, "age": 4}
    there = move_to_device(kept, "meta")
    assert there["m"].device.type == there["v"]["codes"].device.type == "meta"
    assert (there["v"]["shape"], there["age"]) == ([3], 4)
    assert move_to_device(kept, "cpu")["m"] is kept["m"]
    assert move_to_device(kept, "cpu", copy=True)["m"].data_ptr() != kept["m"].data_ptr()
