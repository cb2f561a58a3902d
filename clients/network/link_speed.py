"""Flower is set to send in chunks that suit the speed of a site's link.

Flower cuts an array into chunks and pushes each in one HTTP request. Three of its clocks run while a chunk is on the
link, or waits there behind another: the SuperLink closes a connection on which nothing has come for 5 s, a heartbeat
gives up after 5 s, and a request whose answer does not begin within 30 s after its last byte was handed to the kernel
is made anew, while what was handed over still goes over the link. A push session ends 180 s after its last whole
chunk, and the update with it. So all that is under way at one time should take less than 5 s.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.errors import ConfigError

FLOWER_CHUNK = 5 << 20  # bytes of Flower's own chunks, the most that are sent at once
UNKNOWN_CHUNK = 1 << 17  # bytes of a chunk where the speed is not known; they take 4.2 s at 0.25 Mbit/s
LEAST_CHUNK = 1 << 14  # bytes of the smallest chunk, to which a request adds 5 % of its own
CHUNK_SECONDS = 2.0  # seconds that a chunk may take, on a link as fast as it is said to be


@dataclass(frozen=True, kw_only=True)
class Link:
    """Describes a site's link to the coordinator, the section ``[link]``.

    Attributes:
        mbit: megabits a second in its slower direction; 0: not known.
    """

    mbit: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mbit <= 1e6:  # NaN is refused too
            raise ConfigError("link.mbit", self.mbit, "must be from 0 to 1000000 (0: not known)")

    @property
    def chunk(self) -> int:
        """Return the bytes of a chunk."""
        if not self.mbit:
            return UNKNOWN_CHUNK
        return round(min(max(self.mbit * 1e6 / 8 * CHUNK_SECONDS, LEAST_CHUNK), FLOWER_CHUNK))

    @property
    def at_once(self) -> int:
        """Return how many chunks are under way at one time.

        Two hide the way there and back of a fast link; on a slow one they would only share it.
        """
        return 1 if self.chunk < FLOWER_CHUNK else 2

    def environment(self) -> dict[str, str]:
        """Return the variables that set this for the SuperNode and the ClientApps that it starts."""
        return {
            "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(self.chunk),
            "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES": str(self.at_once),
            "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": str(self.at_once),
        }
