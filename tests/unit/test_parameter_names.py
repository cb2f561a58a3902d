"""Names of wrapped models are those of the models inside."""

from __future__ import annotations

import pytest
import torch

from fedcompress.parameter_names import strip_wrappers


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("_orig_mod.model.norm.weight", "model.norm.weight"),
        ("module.model.norm.weight", "model.norm.weight"),
        ("module.module.w", "w"),
        ("_orig_mod.module.w", "w"),
        ("model.layers.0._fsdp_wrapped_module.mlp.up.weight", "model.layers.0.mlp.up.weight"),
        ("a._checkpoint_wrapped_module._orig_mod.b.weight", "a.b.weight"),
        ("encoder.module.weight", "encoder.module.weight"),
        ("module", "module"),
        ("modules.w", "modules.w"),
        ("", ""),
    ],
)
def test_wrappers(name: str, plain: str) -> None:
    assert strip_wrappers(name) == plain
    assert strip_wrappers(plain) == plain


def test_names_of_real_wrappers() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    inner = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    expected = [name for name, _ in inner.named_parameters()]
    inner[1] = checkpoint_wrapper(inner[1])
    wrapped = torch.compile(torch.nn.DataParallel(inner))
    names = [name for name, _ in wrapped.named_parameters()]
    assert names != expected
    assert [strip_wrappers(name) for name in names] == expected
