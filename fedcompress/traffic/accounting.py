"""Counting bytes: what was sent, and what the same messages cost uncompressed."""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.types import DTYPES, Layout

# Bytes of an entry. int8 counts no scales, so it is the least that 8-bit quantization can cost.
BASELINES: dict[str, int] = {"bf16": DTYPES["bfloat16"], "fp32": DTYPES["float32"], "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Payload bytes of one direction, as whole envelopes, and how many messages carried them."""

    messages: int
    payload: int  # bytes

    def baseline(self, layout: Layout, dtype: str) -> int:
        """Bytes of the same number of messages with every trainable tensor uncompressed."""
        return self.messages * layout.plain_bytes(BASELINES[dtype])

    def ratio(self, layout: Layout, dtype: str) -> float:
        """How many times fewer bytes than the baseline; 0 if nothing was sent."""
        return self.baseline(layout, dtype) / self.payload if self.payload else 0.0


def bits_per_parameter(payload: int, layout: Layout) -> float:
    """Bits on the wire for each trainable parameter of one message."""
    return 8 * payload / layout.numel if layout.numel else 0.0
