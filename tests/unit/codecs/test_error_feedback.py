"""sum(decoded) + residual == sum(delta)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs import CodecSpec, ErrorFeedback, decode_sections, encode_sections
from fedcompress.errors import ConfigError
from fedcompress.types import add, zeros
from tests.support import lora_layout, normal

LAYOUT = lora_layout(modules=1)


@settings(max_examples=40, deadline=None)
@given(
    spec=st.sampled_from(["lora-ternary", "stc", "int4", "bf16", "none"]),
    seed=st.integers(0, 1000),
    fates=st.lists(st.booleans(), min_size=1, max_size=12),
)
def test_nothing_is_lost(spec: str, seed: int, fates: list[bool]) -> None:
    """Whether or not an update is merged; what is not merged is given back."""
    codec, feedback = CodecSpec.parse(spec), ErrorFeedback()
    residual = zeros(LAYOUT)
    merged = zeros(LAYOUT)
    total = zeros(LAYOUT)
    for number, is_merged in enumerate(fates):
        delta = normal(LAYOUT, seed * 100 + number)
        total = add(total, delta)
        target = feedback.target(delta, residual)
        decoded = decode_sections(codec, LAYOUT, encode_sections(codec, LAYOUT, target))
        residual = feedback.residual(target, decoded)
        if is_merged:
            merged = add(merged, decoded)
        else:
            residual = add(residual, decoded)
    for name in total:
        assert np.allclose(merged[name] + residual[name], total[name], atol=1e-5 * len(fates))


def test_decay_forgets() -> None:
    feedback = ErrorFeedback(decay=0.5)
    ones = {n: np.ones_like(v) for n, v in zeros(LAYOUT).items()}
    target = feedback.target(zeros(LAYOUT), ones)
    assert all((v == 0.5).all() for v in target.values())


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"feedback.decay: .*: must be from 0 to 1"):
        ErrorFeedback(decay=decay)
