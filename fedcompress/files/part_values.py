"""Finds the values of one part of a .fcu file: what its sections decode to, and the base that they are added to."""

from __future__ import annotations

from pathlib import Path

from fedcompress.adapters.safetensors_io import TensorSource, open_source
from fedcompress.chunks import TensorSlice, layout_of_slices
from fedcompress.codecs import decode_sections
from fedcompress.errors import ConfigError, MismatchError
from fedcompress.files.container import Container, EnvelopeEntry
from fedcompress.pipeline.coding import parse_codec
from fedcompress.types import Layout, Tensors, state_digest
from fedcompress.wire import Header


def open_base(container: Container, path: Path | None) -> TensorSource | None:
    """Open the base that a file was encoded against; None if the file has the values themselves.

    Only names and shapes are compared here. The values are checked part by part, by ``read_base``.

    Raises:
        ConfigError: the base is missing, not needed, or has other tensors.
    """
    if container.has_base and path is None:
        raise ConfigError("--base", "missing", "must be given: the file has the difference from a base")
    if not container.has_base and path is not None:
        raise ConfigError("--base", path, "must be left out: the file has the values themselves")
    if path is None:
        return None
    base = open_source(path, "--base")
    base.check_fits(container.layout, "--base")
    return base


def read_base(base: TensorSource, header: Header, slices: list[TensorSlice]) -> Tensors:
    """Read the base's values of one part, and check that the part was made from them.

    Args:
        base: an adapter or safetensors file.
        header: of the part's envelope; it has the digest that the base's values must have.
        slices: what the part holds.

    Returns:
        Float32 values by name, of the shapes that the slices have.

    Raises:
        MismatchError: ``base-digest``: the values are others.
        StateError: the file has become shorter.
    """
    values = base.values(slices)
    _check_base(header, layout_of_slices(slices), values, base.path)
    return values


def _check_base(header: Header, layout: Layout, values: Tensors, path: Path) -> None:
    digest = state_digest(layout, values)
    if digest != header.base_digest:
        raise MismatchError(
            "base-digest",
            f"--base: {path}: must be the base that the update was made from: "
            f"its digest is {header.base_digest.hex()[:16]}, this one's {digest.hex()[:16]}",
        )


def decode_part(container: Container, part: EnvelopeEntry) -> Tensors:
    """Decode the sections of a part of a FILE into float32 values, or into differences if it has a base.

    Raises:
        WireError: the envelope has changed since the file was opened, or a section does not decode.
    """
    codec = parse_codec(part.header)
    sections = container.read(part).sections[1:]  # the first one is the manifest
    return decode_sections(codec, layout_of_slices(part.slices), sections)
