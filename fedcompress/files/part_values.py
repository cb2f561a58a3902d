"""Finds the values of one part of a .fcu file: what its sections decode to, and the base that they are added to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedcompress.adapters.safetensors_io import TensorSource, open_source
from fedcompress.chunks import TensorSlice, layout_of_slices
from fedcompress.codecs import CodecSpec, decode_sections
from fedcompress.errors import ConfigError, MismatchError, PayloadError
from fedcompress.files.coded_form import read_exact
from fedcompress.files.container import Container, EnvelopeEntry
from fedcompress.files.manifest import Manifest
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
    base = open_source(path, "--base", keep=True)
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
    assert part.manifest is not None
    sections = container.read(part).sections[1:]  # the first one is the manifest
    return restore_sections(parse_codec(part.header), part.manifest, sections)


def restore_sections(codec: CodecSpec, manifest: Manifest, sections: Sequence[bytes]) -> Tensors:
    """Restore the tensors of a part from its sections.

    Args:
        codec: of the part.
        manifest: of the part.
        sections: those of the codec, and one more if the part has tensors that the codec does not see.

    Returns:
        Finite float32 arrays by name; differences if the file has a base.

    Raises:
        PayloadError: a section does not decode.
    """
    form = manifest.form
    if form.exact and not sections:
        raise PayloadError("section: exact: absent: must be the last section")
    exact = read_exact(manifest.layout, form.exact, sections[-1]) if form.exact else {}
    coded = decode_sections(codec, manifest.coded_layout, sections[: len(sections) - bool(form.exact)])
    return form.restore(manifest.layout, coded, exact)
