"""Bounds what a file from a stranger may take: memory for its manifests, disk for its values, and time to decode."""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.codecs.cost import estimate_work
from fedcompress.errors import ConfigError, LimitError, PayloadError
from fedcompress.files.manifest import Manifest
from fedcompress.pipeline.coding import parse_codec
from fedcompress.types import DTYPES, Layout
from fedcompress.wire import Header

MANIFESTS = (4 << 20, 32)  # bytes that the JSON of all manifests of a file may have, and so many more a byte of it
DECODED = (64 << 20, 10_000)  # bytes of all values as float32, and so many more a byte of the file
WORK = (10**11, 10**5)  # operations of decoding (a core does 10^9 a second), and so many more a byte of the file
REMEDY = "`fedcompress decode --allow-large` takes it, where the file is from somebody you trust"


@dataclass
class FileBudget:
    """Counts what the parts of one file ask for, and refuses the first that asks for too much.

    Attributes:
        size: bytes of the file.
        allow_large: whether values and work have no bound; manifests always have one.
    """

    size: int
    allow_large: bool = False
    _manifests: int = 0
    _decoded: int = 0
    _work: int = 0

    def manifest_bytes_left(self) -> int:
        """Return how long the JSON of the next manifest may be."""
        return _bound(MANIFESTS, self.size) - self._manifests

    def add(self, header: Header, manifest: Manifest, manifest_bytes: int) -> None:
        """Count a part.

        Args:
            header: of its envelope, which names the codec.
            manifest: of the part.
            manifest_bytes: length of its JSON.

        Raises:
            LimitError: with this part the file asks for more than a file of its size may.
            PayloadError: the codec does not fit the part.
        """
        self._manifests += manifest_bytes
        layout = manifest.coded_layout
        self._decoded += sum(piece.spec.numel for piece in manifest.pieces) * DTYPES["float32"]
        self._work += _work_of(header, layout)
        if self.allow_large:
            return
        for what, value, bound in (("bytes of values", self._decoded, DECODED), ("operations", self._work, WORK)):
            most = _bound(bound, self.size)
            if value > most:
                rule = f"a file of {self.size} bytes may decode to at most {most}: {REMEDY}"
                raise LimitError(f"file: {value} {what}: {rule}")


def _bound(bound: tuple[int, int], size: int) -> int:
    least, each = bound
    return least + each * size


def _work_of(header: Header, layout: Layout) -> int:
    try:
        return estimate_work(parse_codec(header), layout)
    except ConfigError as error:
        raise PayloadError(f"header.codec: does not fit the part: {error}") from error
