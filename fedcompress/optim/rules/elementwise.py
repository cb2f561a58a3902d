"""The head that rules share which treat every entry of a parameter by itself."""

from __future__ import annotations

from typing import ClassVar

from fedcompress.optim.base import ELEMENTWISE


class ElementwiseRule:
    """An elementwise rule runs on any shard of any parameter, and keeps nothing but its moments unless it says so."""

    placement: ClassVar[str] = ELEMENTWISE
    needs_weight: ClassVar[bool] = False

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Accept every parameter."""

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return 0: there is no state beside the moments."""
        return 0
