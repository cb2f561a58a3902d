"""Opens a .fcu file: its envelopes are checked one at a time, and that they belong together."""

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
from fedcompress.files.limits import FileBudget
from fedcompress.files.manifest import MAX_PARTS, Manifest, inflate_manifest, parse_manifest_text
from fedcompress.traffic.accounting import bits_per_parameter
from fedcompress.types import DTYPES, Layout, TensorSpec
from fedcompress.wire import Envelope, Header, Kind, Limits, size_of, unpack

PREFIX = 20  # bytes of an envelope's fixed prefix
LIMITS = Limits(max_body=1 << 62)  # no limit: no more is read than the file has


@dataclass(frozen=True, kw_only=True)
class EnvelopeEntry:
    """An entry says where an envelope is in its file, and what it says about itself; sections are left on disk."""

    offset: int  # bytes from the beginning of the file
    size: int  # bytes of the envelope
    header: Header
    section_sizes: tuple[int, ...]  # bytes; the first section of a FILE is its manifest
    digest: bytes
    signed: bool  # there is a signature; nobody has verified it
    manifest: Manifest | None  # only an envelope of kind FILE has one

    @property
    def slices(self) -> list[TensorSlice]:
        """Return the tensors, or rows of tensors, that a part of a FILE holds."""
        assert self.manifest is not None
        return self.manifest.pieces


@dataclass(frozen=True, kw_only=True)
class Container:
    """Holds the outline of a .fcu file that was checked; sections are read again, part by part.

    A file has one or more envelopes of kind FILE, which are its parts, or one single envelope from the network.
    """

    path: Path
    parts: list[EnvelopeEntry]

    def read(self, part: EnvelopeEntry) -> Envelope:
        """Read one envelope with its sections, and check it again: the file may have changed meanwhile."""
        with self.path.open("rb") as file:
            return _read_envelope(file, part.offset, part.offset + part.size)

    @property
    def size(self) -> int:
        """Return the bytes of the file."""
        return sum(p.size for p in self.parts)

    @property
    def digest(self) -> bytes:
        """Return the digest of the only envelope, or the SHA-256 over the digests of all envelopes."""
        digests = [p.digest for p in self.parts]
        return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()

    @property
    def manifests(self) -> list[Manifest]:
        """Return the manifests of all parts, in order; empty if this is an envelope from the network."""
        return [p.manifest for p in self.parts if p.manifest is not None]

    @property
    def layout(self) -> Layout:
        """Return the layout of the whole file; empty if this is an envelope from the network."""
        whole = {p.spec.name: p.whole for m in self.manifests for p in m.pieces}
        return Layout(tuple(whole.values()))

    @property
    def config(self) -> Mapping[str, Any] | None:
        """Return the adapter's config; None if the file holds no adapter."""
        return self.manifests[0].adapter_config if self.manifests else None

    @property
    def has_base(self) -> bool:
        """Return True if the values are the difference from a base."""
        return bool(self.parts[0].header.base_digest)


# What files begin with that people have beside .fcu files -> what they are.
_FOREIGN = {
    b"PK\x03\x04": "what torch has saved, or another zip archive",
    b"\x80\x02": "what torch has pickled",
    b"GGUF": "a GGUF file: `fedcompress template` and sites take it as a base model",
    b"{": "JSON",
    b"#": "text",
}


def open_container(path: Path, field: str = "PATH", *, allow_large: bool = False) -> Container:
    """Open a file and check all its envelopes, and that they belong together.

    Args:
        path: of the file.
        field: what errors call the path.
        allow_large: whether it may decode to any size, and take any time; see ``files.limits``.

    Returns:
        The outline of the file.

    Raises:
        ConfigError: there is no such file.
        LimitError: it asks for more memory, disk or time than a file of its size may.
        WireError: an envelope is malformed or missing, or does not belong here.
    """
    if not path.is_file():
        raise ConfigError(field, path, "must be an .fcu file or an adapter folder")
    with path.open("rb") as file:
        start = file.read(10)
    foreign = next((what for magic, what in _FOREIGN.items() if start.startswith(magic)), "")
    if foreign or start[8:10] == b'{"':
        foreign = foreign or "a safetensors file, whose name must end in .safetensors"
        raise ConfigError(field, path, f"must be an .fcu file: it is {foreign}")
    parts: list[EnvelopeEntry] = []
    end = path.stat().st_size
    budget = FileBudget(end, allow_large)
    offset = 0
    with path.open("rb") as file:
        while offset < end or not parts:
            envelope = _read_envelope(file, offset, end, is_first=not parts)
            if len(parts) == MAX_PARTS:
                raise LimitError(f"file: more than {MAX_PARTS} parts")
            part = _build_entry(envelope, offset, file.tell() - offset, budget)
            parts.append(part)
            offset += part.size
            if part.manifest is None:
                break
    if len(parts) > 1 or parts[0].manifest is not None:
        _check_together(parts)
    return Container(path=path, parts=parts)


def _read_envelope(file: BinaryIO, offset: int, end: int, is_first: bool = False) -> Envelope:
    """Read the envelope that begins at ``offset``; if the first one is from the network, it must be the only one."""
    file.seek(offset)
    prefix = file.read(PREFIX)
    size = size_of(prefix, LIMITS) if len(prefix) == PREFIX else end - offset
    envelope = unpack(prefix + file.read(min(size, end - offset) - len(prefix)), LIMITS)
    if is_first and envelope.header.kind is not Kind.FILE:
        file.seek(offset)
        return unpack(file.read(), LIMITS)
    return envelope


def _build_entry(envelope: Envelope, offset: int, size: int, budget: FileBudget) -> EnvelopeEntry:
    manifest = None
    if envelope.header.kind is Kind.FILE:
        if not envelope.sections:
            raise PayloadError("manifest: absent: must be the first section")
        section = envelope.sections[0]
        text = inflate_manifest(section, budget.manifest_bytes_left())
        manifest = parse_manifest_text(section[:1], text)
        if manifest.layout.digest != envelope.header.layout_digest:
            raise HeaderError("header.layout_digest: not that of the manifest's layout")
        budget.add(envelope.header, manifest, len(text))
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
    first = parts[0].header
    if len(parts) != manifests[0].parts:
        raise PayloadError(f"file: {len(parts)} parts: must be {manifests[0].parts}: some are missing")
    after = ""
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
    names = {p.spec.name for m in manifests for p in m.pieces}
    if not names.isdisjoint(manifests[0].kept):
        raise PayloadError("manifest.kept: names a tensor that a part has, too")
    _check_rows([p for m in manifests for p in m.pieces])


def _check_rows(pieces: list[TensorSlice]) -> None:
    """Raise unless every tensor is there once, with all its rows in order."""
    rows_before: dict[str, int] = {}
    wholes: dict[str, TensorSpec] = {}
    for piece in pieces:
        name = piece.spec.name
        rows = piece.spec.shape[0] if piece.total else 0
        if (name in rows_before and not piece.total) or rows_before.get(name, 0) != piece.start:
            raise PayloadError(f"file: {name}: rows are missing or occur twice")
        if wholes.setdefault(name, piece.whole) != piece.whole:
            raise PayloadError(f"file: {name}: its pieces disagree about it")
        rows_before[name] = piece.start + rows
    for name, whole in wholes.items():
        if rows_before[name] and rows_before[name] != whole.shape[0]:
            raise PayloadError(f"file: {name}: rows are missing")


def compute_size_ratios(size: int, layout: Layout) -> dict[str, float]:
    """Compute what a file of ``size`` bytes costs and saves.

    Returns:
        ``bits_per_parameter``, and ``ratio_fp32`` and ``ratio_bf16``: how many times smaller the file is than the
        values at 4 and at 2 bytes each.
    """
    fp32_bytes = layout.plain_bytes(DTYPES["float32"])
    bf16_bytes = layout.plain_bytes(DTYPES["bfloat16"])
    return {
        "bits_per_parameter": bits_per_parameter(size, layout),
        "ratio_fp32": fp32_bytes / size if size else 0.0,
        "ratio_bf16": bf16_bytes / size if size else 0.0,
    }
