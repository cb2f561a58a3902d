"""A .fcu file: its envelopes, checked one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedcompress.adapters import adapter_digest
from fedcompress.adapters.safetensors_io import PEFT
from fedcompress.chunks import TensorSlice
from fedcompress.errors import ConfigError, HeaderError, LimitError, PayloadError
from fedcompress.files.manifest import MAX_PARTS, Manifest, manifest_from
from fedcompress.types import Layout, TensorSpec
from fedcompress.wire import Envelope, Header, Kind, Limits, size_of, unpack

PREFIX = 20
LIMITS = Limits(max_body=1 << 62)  # no more is read than the file has


@dataclass(frozen=True, kw_only=True)
class EnvelopeEntry:
    """Where an envelope is in its file, and what it says about itself."""

    offset: int
    size: int
    header: Header
    section_sizes: tuple[int, ...]
    digest: bytes
    signed: bool
    manifest: Manifest | None  # of a FILE


@dataclass(frozen=True, kw_only=True)
class Container:
    """The checked outline of a .fcu file; sections are read again, part by part."""

    path: Path
    parts: list[EnvelopeEntry]

    def read(self, part: EnvelopeEntry) -> Envelope:
        """One envelope, checked again."""
        with self.path.open("rb") as file:
            return _envelope_at(file, part.offset, part.offset + part.size)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(p.size for p in self.parts)

    @property
    def digest(self) -> bytes:
        """Digest of the envelope, or SHA-256 of those of all envelopes."""
        digests = [p.digest for p in self.parts]
        return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()

    @property
    def manifests(self) -> list[Manifest]:
        """Of all parts, in order; empty if this is an envelope from the network."""
        return [p.manifest for p in self.parts if p.manifest is not None]

    @property
    def layout(self) -> Layout:
        """Layout of the whole file; empty if this is an envelope from the network."""
        whole = {p.spec.name: p.whole for m in self.manifests for p in m.pieces}
        return Layout(tuple(whole.values()))

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The adapter's config."""
        return self.manifests[0].adapter_config if self.manifests else None

    @property
    def has_base(self) -> bool:
        """Whether the values are a difference."""
        return bool(self.parts[0].header.base_digest)


def open_container(path: Path, field: str = "PATH") -> Container:
    """Check all envelopes of a file, and that they belong together.

    Raises:
        ConfigError: there is no such file.
        WireError: an envelope is malformed, or one is missing, or does not belong here.
    """
    if not path.is_file():
        raise ConfigError(field, path, "must be an .fcu file or an adapter folder")
    parts: list[EnvelopeEntry] = []
    end, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < end or not parts:
            envelope = _envelope_at(file, at, end, alone=not parts)
            if len(parts) == MAX_PARTS:
                raise LimitError(f"file: more than {MAX_PARTS} parts")
            part = _part_of(envelope, at, file.tell() - at)
            parts.append(part)
            at += part.size
            if part.manifest is None:
                break
    if len(parts) > 1 or parts[0].manifest is not None:
        _check_together(parts)
    return Container(path=path, parts=parts)


def _envelope_at(file: BinaryIO, at: int, end: int, alone: bool = False) -> Envelope:
    """The envelope that begins there; a first envelope from the network must be all there is."""
    file.seek(at)
    prefix = file.read(PREFIX)
    size = size_of(prefix, LIMITS) if len(prefix) == PREFIX else end - at
    envelope = unpack(prefix + file.read(min(size, end - at) - len(prefix)), LIMITS)
    if alone and envelope.header.kind is not Kind.FILE:
        file.seek(at)
        return unpack(file.read(), LIMITS)
    return envelope


def _part_of(envelope: Envelope, offset: int, size: int) -> EnvelopeEntry:
    manifest = None
    if envelope.header.kind is Kind.FILE:
        if not envelope.sections:
            raise PayloadError("manifest: absent: must be the first section")
        manifest = manifest_from(envelope.sections[0])
        if manifest.layout.digest != envelope.header.layout_digest:
            raise HeaderError("header.layout_digest: not that of the manifest's layout")
    return EnvelopeEntry(
        offset=offset,
        size=size,
        header=envelope.header,
        section_sizes=tuple(len(s) for s in envelope.sections),
        digest=envelope.digest,
        signed=bool(envelope.signature),
        manifest=manifest,
    )


def _check_together(parts: list[EnvelopeEntry]) -> None:
    """Raise unless these are all parts of one file, in order."""
    manifests = [p.manifest for p in parts if p.manifest is not None]
    if len(manifests) != len(parts):
        raise HeaderError("header.kind: an envelope among the parts of a file: must be FILE")
    first, after = parts[0].header, ""
    if len(parts) != manifests[0].parts:
        raise PayloadError(f"file: {len(parts)} parts: must be {manifests[0].parts}: some are missing")
    for number, (part, manifest) in enumerate(zip(parts, manifests, strict=True)):
        if (manifest.part, manifest.parts, manifest.after) != (number, len(parts), after):
            raise PayloadError(f"file: part {number}: does not follow the one before it")
        if manifest.format != manifests[0].format or bool(part.header.base_digest) != bool(first.base_digest):
            raise PayloadError(f"file: part {number}: differs from the first in format or base")
        after = part.digest.hex()
    config = manifests[0].adapter_config
    if (config is not None) != (manifests[0].format == PEFT):
        raise PayloadError("manifest.adapter_config: must be there for a folder, and only there")
    if config is not None and adapter_digest(config) != first.adapter_digest:
        raise HeaderError("header.adapter_digest: not that of the manifest's adapter_config")
    _check_rows([p for m in manifests for p in m.pieces])


def _check_rows(pieces: list[TensorSlice]) -> None:
    """Raise unless every tensor is there once, with all its rows in order."""
    done: dict[str, int] = {}
    wholes: dict[str, TensorSpec] = {}
    for piece in pieces:
        name = piece.spec.name
        rows = piece.spec.shape[0] if piece.total else 0
        if (name in done and not piece.total) or done.get(name, 0) != piece.start:
            raise PayloadError(f"file: {name}: rows are missing or occur twice")
        if wholes.setdefault(name, piece.whole) != piece.whole:
            raise PayloadError(f"file: {name}: its pieces disagree about it")
        done[name] = piece.start + rows
    for name, whole in wholes.items():
        if done[name] and done[name] != whole.shape[0]:
            raise PayloadError(f"file: {name}: rows are missing")
