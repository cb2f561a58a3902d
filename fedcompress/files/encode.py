"""Encoding adapters and checkpoints into .fcu files, and decoding them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcompress.adapters import adapter_digest
from fedcompress.adapters.safetensors_io import Source, open_source
from fedcompress.chunks import FILE_CHUNK_ENTRIES, TensorSlice, layout_of_slices, split_layout
from fedcompress.codecs import Clause, CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.transform.code import Transform
from fedcompress.errors import ConfigError
from fedcompress.files.distortion import Distortion
from fedcompress.files.manifest import MAX_PARTS, Manifest
from fedcompress.pipeline.coding import share_of
from fedcompress.traffic.accounting import bits_per_parameter
from fedcompress.types import DTYPES, Layout, Tensors, add, state_digest, subtract
from fedcompress.wire import Header, Kind, pack

DEFAULT_CODEC = "transform(budget=0.28)"
Progress = Callable[[int, int], None]  # entries done, entries in all


def silent(done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is the same for all parts of a file that is encoded."""

    source: Source
    base: Source | None
    spec: CodecSpec
    parts: list[list[TensorSlice]]
    seed: int

    def part(self, number: int, after: str) -> tuple[bytes, Tensors, Tensors]:
        """An envelope, the values in it, and what they decode to."""
        pieces = self.parts[number]
        layout, values = layout_of_slices(pieces), self.source.values(pieces)
        base = self.base.values(pieces) if self.base else None
        if base is not None:
            layout.check(base, what="--base")
            values = subtract(values, base)
        spec = share_of(self.spec, self.source.layout, layout)
        sections = encode_sections(spec, layout, values, seed=self.seed)
        decoded = decode_sections(spec, layout, sections)
        reached = decoded if base is None else add(base, decoded)
        layout.check(reached, what="encode: values reached")
        manifest = self._manifest(number, after)
        header = Header(
            kind=Kind.FILE,
            run="",
            round=0,
            version=0,
            codec=str(spec),
            layout_digest=layout.digest,
            base_digest=state_digest(layout, base) if base is not None else b"",
            result_digest=state_digest(layout, reached),
            adapter_digest=adapter_digest(self.source.config) if self.source.config is not None else b"",
        )
        return pack(header, (manifest.to_section(), *sections)), values, decoded

    def _manifest(self, number: int, after: str) -> Manifest:
        manifest = Manifest(
            format=self.source.format,
            pieces=self.parts[number],
            part=number,
            parts=len(self.parts),
            after=after,
        )
        if number:
            return manifest
        config, metadata = self.source.config, self.source.metadata
        return replace(manifest, codec=str(self.spec), adapter_config=config, metadata=metadata)


def choose_codec(codec: str = "", budget: str = "") -> CodecSpec:
    """The codec that two options ask for.

    Raises:
        ConfigError: both are given, or one does not parse.
    """
    if codec and budget:
        raise ConfigError("--budget", budget, "must not be given together with --codec")
    if budget:
        try:
            return CodecSpec((Clause((), Transform(budget=budget.strip())),))
        except ConfigError as error:
            raise ConfigError("--budget", budget, "must be a size (1000B, 64KiB, 2MiB) or bits a parameter") from error
    return CodecSpec.parse(codec or DEFAULT_CODEC, field="--codec")


def encode_file(
    path: Path,
    out: Path,
    *,
    base: Path | None = None,
    codec: str = "",
    budget: str = "",
    seed: int = 0,
    part_entries: int = FILE_CHUNK_ENTRIES,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Encode a PEFT folder or a safetensors file into a .fcu file, written whole or not at all.

    Args:
        path: of a PEFT folder or a safetensors file.
        out: the file to write.
        base: like ``path``; the difference from it is encoded.
        codec: a codec spec; default ``transform(budget=0.28)``.
        budget: instead, a size for the transform code.
        seed: of what is random in the codec.
        part_entries: entries that are coded together; memory grows with it.
        progress: called with entries done and entries in all.

    Returns:
        Sizes, and how much of the energy was captured.

    Raises:
        ConfigError: an option is wrong, or the base does not fit.
        StateError: a file does not parse.
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    if not 0 <= seed < 1 << 63:
        raise ConfigError("--seed", seed, "must be from 0 to 2^63 - 1")
    if out.is_dir():
        raise ConfigError("-o", out, "must be a file, not a folder")
    job = _job(path, base, choose_codec(codec, budget), seed, part_entries)
    distortion, size = _encode_parts(job, out, progress)
    return {"path": str(out), **_facts(job, size), "captured": distortion.captured}


def _facts(job: _Job, size: int) -> dict[str, Any]:
    """What was encoded, and into how many bytes."""
    layout = job.source.layout
    return {
        "format": job.source.format,
        "codec": str(job.spec),
        "bytes": size,
        "parts": len(job.parts),
        "tensors": len(layout.tensors),
        "parameters": layout.numel,
        **ratios(size, layout),
    }


def _job(path: Path, base: Path | None, spec: CodecSpec, seed: int, part_entries: int) -> _Job:
    """Headers read and compared, before any value is."""
    source = open_source(path)
    held = open_source(base, "--base") if base is not None else None
    if held is not None:
        held.check_fits(source.layout, "--base")
    spec.assign(source.layout)
    parts = split_layout(source.layout, part_entries)
    if len(parts) > MAX_PARTS:
        raise ConfigError("PATH", path, f"at most {MAX_PARTS} parts of {part_entries} entries")
    return _Job(source=source, base=held, spec=spec, parts=parts, seed=seed)


def _encode_parts(job: _Job, out: Path, progress: Progress) -> tuple[Distortion, int]:
    """Write the parts one after another; their distortion, and the bytes."""
    distortion, size, done, after = Distortion(), 0, 0, ""
    temporary = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    progress(0, job.source.layout.numel)
    try:
        with temporary.open("wb") as file:
            for number, pieces in enumerate(job.parts):
                data, values, decoded = job.part(number, after)
                file.write(data)
                distortion.add(pieces, values, decoded)
                size, after = size + len(data), data[-32:].hex()
                done += sum(p.spec.numel for p in pieces)
                progress(done, job.source.layout.numel)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return distortion, size


def ratios(size: int, layout: Layout) -> dict[str, float]:
    """Bits a parameter, and how many times smaller than the values at 4 and 2 bytes each."""
    plain = {name: layout.plain_bytes(DTYPES[dtype]) for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))}
    return {
        "bits_per_parameter": bits_per_parameter(size, layout),
        **{f"ratio_{name}": count / size if size else 0.0 for name, count in plain.items()},
    }
