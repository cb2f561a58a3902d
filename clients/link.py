"""The speed of a site's link, and what Flower is told of it.

Flower cuts an array into chunks and pushes each in one HTTP request. The answer must begin within 30 s after the
last byte was handed to the kernel, and a request that timed out is made anew: what the kernel and the devices on
the way still hold then goes over the link twice. The heartbeat that keeps a node in the run waits behind it too, and
gives up after 5 s. A push session ends 180 s after the last whole chunk. So a chunk should be short for its link.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.errors import ConfigError

FLOWER_CHUNK = 5 << 20  # bytes, Flower's own
UNKNOWN_CHUNK = 1 << 18  # bytes: two at once take 17 s at 0.25 Mbit/s
LEAST_CHUNK = 1 << 14  # bytes, of which a request's own are 5 %
CHUNK_SECONDS = 2.0  # that a chunk may take: less than the 5 s of a heartbeat that waits behind it


@dataclass(frozen=True, kw_only=True)
class Link:
    """A site's link to the coordinator; ``mbit`` a second in its slower direction, 0: not known."""

    mbit: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mbit <= 1e6:  # NaN is refused too
            raise ConfigError("link.mbit", self.mbit, "must be from 0 to 1000000 (0: not known)")

    @property
    def chunk(self) -> int:
        """Bytes of a chunk."""
        if not self.mbit:
            return UNKNOWN_CHUNK
        return round(min(max(self.mbit * 1e6 / 8 * CHUNK_SECONDS, LEAST_CHUNK), FLOWER_CHUNK))

    @property
    def at_once(self) -> int:
        """Chunks that are under way at one time: two hide the way there and back, on a slow link they only share it."""
        return 1 if self.mbit and self.chunk < FLOWER_CHUNK else 2

    def environment(self) -> dict[str, str]:
        """Variables for the SuperNode and the ClientApps that it starts."""
        return {
            "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(self.chunk),
            "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES": str(self.at_once),
            "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": str(self.at_once),
        }
