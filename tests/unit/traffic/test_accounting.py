"""What the same messages would have cost uncompressed."""

from __future__ import annotations

from fedcompress.traffic.accounting import Traffic, bits_per_parameter
from tests.support import lora_layout

LAYOUT = lora_layout()


def test_baselines_are_exact() -> None:
    traffic = Traffic(messages=6, payload=1000)
    assert traffic.baseline(LAYOUT, "bf16") == 6 * 2 * LAYOUT.numel
    assert traffic.ratio(LAYOUT, "fp32") == 6 * 4 * LAYOUT.numel / 1000
    assert traffic.baseline(LAYOUT, "int8") == 6 * LAYOUT.numel
    assert Traffic(messages=0, payload=0).ratio(LAYOUT, "bf16") == 0
    assert bits_per_parameter(LAYOUT.numel, LAYOUT) == 8
