"""Bytes of payload are accounted for: those that were sent, and those of the same messages without compression."""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.types import DTYPES, Layout

# Bytes of one tensor element. int8 counts no scales, so it is the least that 8-bit quantization can cost.
BASELINES: dict[str, int] = {"bf16": DTYPES["bfloat16"], "fp32": DTYPES["float32"], "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Traffic has the number of messages of one direction and the bytes of their envelopes.

    It can be compared with the same messages uncompressed.
    """

    messages: int
    payload: int  # bytes of all envelopes, headers included

    def baseline(self, layout: Layout, dtype: str) -> int:
        """Return the bytes of as many messages with all trainable tensors uncompressed, in a dtype of ``BASELINES``."""
        return self.messages * layout.plain_bytes(BASELINES[dtype])

    def ratio(self, layout: Layout, dtype: str) -> float:
        """Return how many times fewer bytes were sent than in the baseline; 0 if nothing was sent."""
        return self.baseline(layout, dtype) / self.payload if self.payload else 0.0


def bits_per_parameter(payload: int, layout: Layout) -> float:
    """Return the bits that one message has for each trainable parameter; 0 if there are none.

    Args:
        payload: bytes of the message's envelope.
        layout: of the trainable tensors.
    """
    return 8 * payload / layout.numel if layout.numel else 0.0
