"""Decodes .fcu files to adapter folders and safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from fedcompress.adapters.safetensors_io import PEFT, SUFFIX, Sink, Source, open_source
from fedcompress.chunks import TensorSlice, layout_of_slices
from fedcompress.codecs import decode_sections
from fedcompress.errors import ConfigError, MismatchError
from fedcompress.files.container import Container, EnvelopeEntry, open_container
from fedcompress.files.encode import Progress, silent
from fedcompress.pipeline.coding import codec_of
from fedcompress.pipeline.states import check_result
from fedcompress.types import Layout, Tensors, add, state_digest
from fedcompress.wire import Header


def decode_file(path: Path, out: Path, *, base: Path | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Restore what ``encode_file`` was given: a stock PEFT folder, or a safetensors file.

    Every envelope is checked before anything is written.

    Args:
        path: a .fcu file that ``encode_file`` wrote.
        out: the folder, or the file, to write.
        base: what the file was encoded against, if it was.
        progress: called with entries done and entries in all.

    Raises:
        ConfigError: the base is missing or not needed, or ``out`` does not suit what is in the file.
        WireError: the file is malformed.
        MismatchError: the base is another one.
    """
    container = open_container(path)
    if not container.manifests:
        rule = "must be a file that `fedcompress encode` wrote; an envelope of a run has no layout inside"
        raise ConfigError("PATH", path, rule)
    held = find_base(container, base)
    layout, config = container.layout, container.config
    target = _target(out, container.manifests[0].format)
    done = 0
    progress(0, layout.numel)
    with Sink(target, layout, container.manifests[0].metadata) as sink:
        for part in container.parts:
            values = decode_entry(container, part, held)
            for piece in entry_slices(part):
                sink.write(piece, values[piece.spec.name])
            done += sum(p.spec.numel for p in entry_slices(part))
            progress(done, layout.numel)
        if config is not None:
            _write_config(out / CONFIG_FILE, config)
    return {
        "path": str(out),
        "format": container.manifests[0].format,
        "tensors": len(layout.tensors),
        "parameters": layout.numel,
        "bytes": target.stat().st_size,
    }


def _target(out: Path, stored: str) -> Path:
    """The safetensors file to write."""
    if stored == PEFT:
        if out.exists() and not out.is_dir():
            raise ConfigError("-o", out, "must be a folder: there is an adapter in the file")
        return out / WEIGHTS_FILE
    if out.suffix != SUFFIX or out.is_dir():
        raise ConfigError("-o", out, f"must be a name that ends in {SUFFIX}: there is no adapter in the file")
    return out


def find_base(container: Container, base: Path | None) -> Source | None:
    """The base of a file, if it has one; its values are checked part by part.

    Raises:
        ConfigError: it is missing, not needed, or has other tensors.
    """
    if container.has_base and base is None:
        raise ConfigError("--base", "missing", "must be given: the file has the difference from a base")
    if not container.has_base and base is not None:
        raise ConfigError("--base", base, "must be left out: the file has the values themselves")
    if base is None:
        return None
    held = open_source(base, "--base")
    held.check_fits(container.layout, "--base")
    return held


def entry_slices(part: EnvelopeEntry) -> list[TensorSlice]:
    """What a part of a file holds."""
    assert part.manifest is not None
    return part.manifest.pieces


def decode_entry(container: Container, part: EnvelopeEntry, base: Source | None) -> Tensors:
    """Float32 values that a part leads to.

    Raises:
        MismatchError: ``base-digest`` or ``result-digest``.
        PayloadError: a section does not decode.
    """
    pieces = entry_slices(part)
    layout, header = layout_of_slices(pieces), part.header
    values = decode_sections(codec_of(header), layout, container.read(part).sections[1:])
    if base is not None:
        held = base.values(pieces)
        check_base(header, layout, held, base.path)
        values = add(held, values)
    check_result(header, layout, values)
    return values


def check_base(header: Header, layout: Layout, held: Tensors, path: Path) -> None:
    """Raise ``MismatchError`` unless these are the values that the update was made from."""
    found = state_digest(layout, held)
    if found != header.base_digest:
        raise MismatchError(
            "base-digest",
            f"--base: {path}: must be the base that the update was made from: "
            f"its digest is {header.base_digest.hex()[:16]}, this one's {found.hex()[:16]}",
        )


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, path)
