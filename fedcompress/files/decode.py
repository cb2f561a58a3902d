"""Decodes .fcu files into adapter folders and safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from fedcompress.adapters.safetensors_io import PEFT, SUFFIX, Sink, TensorSource
from fedcompress.chunks import layout_of_slices
from fedcompress.errors import ConfigError
from fedcompress.files.container import Container, EnvelopeEntry, open_container
from fedcompress.files.part_values import decode_part, open_base, read_base
from fedcompress.files.progress import Progress, ignore_progress
from fedcompress.pipeline.states import check_result
from fedcompress.types import Tensors, add


def decode_file(
    path: Path,
    out: Path,
    *,
    base: Path | None = None,
    allow_large: bool = False,
    progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """Decode a .fcu file into what ``encode_file`` was given: a stock PEFT folder, or a safetensors file.

    Every envelope is checked before anything is written, and the values of each part against the digest in its
    header. The output appears under its name when all of it is written.

        >>> decode_file(Path("a.fcu"), Path("adapter"))["format"]  # doctest: +SKIP
        'peft'

    Args:
        path: a .fcu file that ``encode_file`` wrote.
        out: the folder, or the .safetensors file, to write.
        base: what the file was encoded against, if it was.
        allow_large: take a file that decodes to 10,000 times its size, or for hours, as one from a stranger may.
        progress: is called with the entries that are done and the entries in all.

    Returns:
        What was written: ``path``, ``format``, numbers of ``tensors`` and ``parameters``, and ``bytes`` of the
        safetensors file.

    Raises:
        ConfigError: the base is missing or not needed, or ``out`` does not suit what is in the file.
        WireError: the file is malformed; ``LimitError``, if it asks for too much.
        MismatchError: the base is another one.
    """
    container = open_container(path, allow_large=allow_large)
    if not container.manifests:
        rule = "must be a file that `fedcompress encode` wrote; an envelope of a run has no layout inside"
        raise ConfigError("PATH", path, rule)
    base_source = open_base(container, base)
    layout, config = container.layout, container.config
    weights_file = _choose_weights_file(out, container.manifests[0].format)
    done = 0
    progress(0, layout.numel)
    with Sink(weights_file, layout, container.manifests[0].metadata, container.manifests[0].kept) as sink:
        for part in container.parts:
            values = _restore_part(container, part, base_source)
            for tensor_slice in part.slices:
                sink.write(tensor_slice, values[tensor_slice.spec.name])
                done += tensor_slice.spec.numel
            progress(done, layout.numel)
        if config is not None:
            _write_config(out / CONFIG_FILE, config)
    return {
        "path": str(out),
        "format": container.manifests[0].format,
        "tensors": len(layout.tensors),
        "parameters": layout.numel,
        "bytes": weights_file.stat().st_size,
    }


def _choose_weights_file(out: Path, file_format: str) -> Path:
    """Return the safetensors file to write, or raise ``ConfigError`` if ``out`` does not suit the format."""
    if file_format == PEFT:
        if out.exists() and not out.is_dir():
            raise ConfigError("-o", out, "must be a folder: there is an adapter in the file")
        return out / WEIGHTS_FILE
    if out.suffix != SUFFIX or out.is_dir():
        raise ConfigError("-o", out, f"must be a name that ends in {SUFFIX}: there is no adapter in the file")
    return out


def _restore_part(container: Container, part: EnvelopeEntry, base: TensorSource | None) -> Tensors:
    """Restore the float32 values of a part, and check that they are those that the encoder reached.

    Raises:
        MismatchError: ``base-digest`` or ``result-digest``.
        PayloadError: a section does not decode.
    """
    values = decode_part(container, part)
    if base is not None:
        values = add(read_base(base, part.header, part.slices), values)
    check_result(part.header, layout_of_slices(part.slices), values)
    return values


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)
