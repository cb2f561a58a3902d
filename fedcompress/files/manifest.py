"""The manifest is the first section of a FILE envelope: what one needs to decode it without a layout of one's own."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedcompress.adapters.kept_tensors import KeptTensor, kept_to_json, parse_kept
from fedcompress.adapters.safetensors_io import METADATA, PEFT, SAFETENSORS
from fedcompress.chunks import MAX_CHUNK_ENTRIES, TensorSlice, layout_of_slices
from fedcompress.errors import FedCompressError, LimitError, PayloadError
from fedcompress.files.coded_form import KEYS, CodedForm, parse_form
from fedcompress.types import Layout

VERSION = 2  # first byte of the section
PLAIN_VERSION = 1  # where all tensors are coded as they are; written, too, so that older readers can read these
KEPT = "kept"  # key of tensors that are kept as they are
MAX_BYTES = 1 << 24  # bytes of the JSON, inflated
MAX_PARTS = 100_000  # in one file
_AFTER = re.compile(r"(?:[0-9a-f]{64})?")  # a digest in hex; nothing for the first part


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest says what a part holds, and where it stands in its file; the fields are those of the JSON."""

    format: str  # peft or safetensors
    pieces: list[TensorSlice]  # the tensors of the part, or rows of them
    part: int  # its number, from 0
    parts: int  # how many the file has
    after: str  # digest in hex of the envelope before it; empty for the first part
    codec: str = ""  # codec of the whole file; only the first part has it, and what follows
    adapter_config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the safetensors file
    form: CodedForm = field(default_factory=CodedForm)  # how tensors of the part are coded
    kept: Mapping[str, KeptTensor] = field(default_factory=dict)  # of the whole file; only in the first part

    @property
    def layout(self) -> Layout:
        """Return the layout of the part."""
        return layout_of_slices(self.pieces)

    @property
    def coded_layout(self) -> Layout:
        """Return the layout of what the codec sees of the part."""
        return self.form.coded_layout(self.layout)

    def to_section(self) -> bytes:
        """Serialize to a section: a byte with the version, then deflated JSON.

        Raises:
            LimitError: the JSON is too long.
        """
        entries: dict[str, Any] = {
            "format": self.format,
            "layout": json.loads(self.layout.to_json()),
            "part": self.part,
            "parts": self.parts,
            "after": self.after,
        }
        rows = {p.spec.name: [p.start, p.total] for p in self.pieces if p.total}
        for key, value in (("rows", rows), ("codec", self.codec), ("metadata", dict(self.metadata))):
            if value:
                entries[key] = value
        if self.adapter_config is not None:
            entries["adapter_config"] = dict(self.adapter_config)
        entries |= self.form.to_entries(self.layout)
        if self.kept:
            entries[KEPT] = kept_to_json(self.kept)
        text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
        if len(text) > MAX_BYTES:
            raise LimitError(f"manifest: {len(text)} bytes: at most {MAX_BYTES}")
        return bytes([PLAIN_VERSION if self.form.is_plain and not self.kept else VERSION]) + zlib.compress(text, 9)


def parse_manifest(section: bytes) -> Manifest:
    """Parse what ``Manifest.to_section`` makes.

    Raises:
        LimitError: the section expands to too much, or promises too many entries.
        PayloadError: the section is malformed.
    """
    return parse_manifest_text(section[:1], inflate_manifest(section))


def inflate_manifest(section: bytes, most: int = MAX_BYTES) -> bytes:
    """Return the JSON of a section, which is inflated no further than it may be.

    Args:
        section: as ``Manifest.to_section`` makes it.
        most: bytes of the JSON, at most ``MAX_BYTES``.

    Raises:
        LimitError: the section expands to more.
        PayloadError: the section is of another version, or no zlib stream.
    """
    most = max(min(most, MAX_BYTES), 0)
    if section[:1] not in (bytes([PLAIN_VERSION]), bytes([VERSION])):
        raise PayloadError(f"manifest.version: {section[:1].hex()}: this library reads {PLAIN_VERSION} and {VERSION}")
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(section[1:], most + 1)
    except zlib.error as error:
        raise PayloadError(f"manifest: not a zlib stream: {error}") from error
    if len(text) > most:
        raise LimitError(f"manifest: more than {most} bytes: at most these in a file of this size")
    if not inflater.eof or inflater.unused_data:
        raise PayloadError("manifest: the zlib stream does not end where the section ends")
    return text


def parse_manifest_text(version: bytes, text: bytes) -> Manifest:
    """Parse the JSON of a manifest.

    Args:
        version: the first byte of its section.
        text: as ``inflate_manifest`` returns it.

    Raises:
        LimitError: it promises too many entries.
        PayloadError: it is malformed.
    """
    try:
        entries = json.loads(text)
        if version[0] == PLAIN_VERSION and any(key in entries for key in (*KEYS, KEPT)):
            raise ValueError(f"{(*KEYS, KEPT)}: must not be in version {PLAIN_VERSION}")
        manifest = _build_manifest(entries)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FedCompressError) as error:
        if isinstance(error, LimitError):
            raise
        raise PayloadError(f"manifest: malformed: {error}") from error
    return manifest


def _build_manifest(entries: dict[str, Any]) -> Manifest:
    layout = Layout.from_json(json.dumps(entries["layout"]))
    if layout.numel > MAX_CHUNK_ENTRIES:
        raise LimitError(f"manifest.layout: {layout.numel} entries: at most {MAX_CHUNK_ENTRIES} in a part")
    rows = entries.get("rows", {})
    pieces = []
    for spec in layout.tensors:
        start, total = rows.pop(spec.name, (0, 0))
        if type(start) is not int or type(total) is not int:
            raise TypeError(f"rows.{spec.name}: must be integers")
        if total and (not spec.shape or not 0 <= start <= start + spec.shape[0] <= total):
            raise ValueError(f"rows.{spec.name}: {start} of {total}: must hold {list(spec.shape)}")
        piece = TensorSlice(spec=spec, start=start, total=total)
        _ = piece.whole  # making the spec of the whole tensor checks it
        pieces.append(piece)
    manifest = Manifest(
        format=entries["format"],
        pieces=pieces,
        part=entries["part"],
        parts=entries["parts"],
        after=entries["after"],
        codec=entries.get("codec", ""),
        adapter_config=entries.get("adapter_config"),
        metadata=entries.get("metadata", {}),
        form=parse_form(entries, layout),
        kept=parse_kept(entries.get(KEPT, {})),
    )
    _check(manifest, rows)
    return manifest


def _check(manifest: Manifest, unknown_rows: Mapping[str, object]) -> None:
    config, metadata = manifest.adapter_config, manifest.metadata
    json.dumps(metadata, ensure_ascii=False).encode()  # raises on lone surrogates
    is_valid = {
        "format": manifest.format in (PEFT, SAFETENSORS),
        "part": type(manifest.part) is int and type(manifest.parts) is int and 0 <= manifest.part < manifest.parts,
        "parts": type(manifest.parts) is int and manifest.parts <= MAX_PARTS,
        "after": isinstance(manifest.after, str) and bool(_AFTER.fullmatch(manifest.after)),
        "rows": not unknown_rows and all(p.start >= 0 and (p.total or not p.start) for p in manifest.pieces),
        "layout": all(p.spec.name != METADATA for p in manifest.pieces),
        "codec": isinstance(manifest.codec, str),
        KEPT: not manifest.kept or (not manifest.part and METADATA not in manifest.kept),
        "adapter_config": config is None or isinstance(config, dict),
        "metadata": isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()),
    }
    for name, is_field_valid in is_valid.items():
        if not is_field_valid:
            raise ValueError(f"{name}: not as specified")
