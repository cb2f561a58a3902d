"""Encoding adapters and checkpoints into .fcu files, and decoding them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcompress.accounting import bits_per_parameter
from fedcompress.adapters import adapter_digest
from fedcompress.adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from fedcompress.codecs import Clause, CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.transform import Transform
from fedcompress.errors import ConfigError, MismatchError
from fedcompress.files.container import Container, Part, open_container
from fedcompress.files.distortion import Distortion
from fedcompress.files.manifest import MAX_PARTS, Manifest
from fedcompress.files.tensors import PEFT, SUFFIX, Sink, Source, open_source
from fedcompress.parts import PART, Piece, cut, layout_of
from fedcompress.parts.coding import share_of
from fedcompress.pipeline import check_result, codec_of
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
    parts: list[list[Piece]]
    seed: int

    def part(self, number: int, after: str) -> tuple[bytes, Tensors, Tensors]:
        """An envelope, the values in it, and what they decode to."""
        pieces = self.parts[number]
        layout, values = layout_of(pieces), self.source.values(pieces)
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
    part_entries: int = PART,
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
    parts = cut(source.layout, part_entries)
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
    held = base_for(container, base)
    layout, config = container.layout, container.config
    target = _target(out, container.manifests[0].format)
    done = 0
    progress(0, layout.numel)
    with Sink(target, layout, container.manifests[0].metadata) as sink:
        for part in container.parts:
            values = values_of(container, part, held)
            for piece in pieces_of(part):
                sink.write(piece, values[piece.spec.name])
            done += sum(p.spec.numel for p in pieces_of(part))
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


def base_for(container: Container, base: Path | None) -> Source | None:
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


def pieces_of(part: Part) -> list[Piece]:
    """What a part of a file holds."""
    assert part.manifest is not None
    return part.manifest.pieces


def values_of(container: Container, part: Part, base: Source | None) -> Tensors:
    """Float32 values that a part leads to.

    Raises:
        MismatchError: ``base-digest`` or ``result-digest``.
        PayloadError: a section does not decode.
    """
    pieces = pieces_of(part)
    layout, header = layout_of(pieces), part.header
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
