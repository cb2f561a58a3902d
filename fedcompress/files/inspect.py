"""What is in a .fcu file, an adapter folder or a safetensors file, as facts for a program or a person."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fedcompress.adapters import adapter_digest
from fedcompress.adapters.safetensors_io import SUFFIX, Source, open_source
from fedcompress.chunks import TensorSlice, layout_of_slices
from fedcompress.codecs import CodecSpec, decode_sections
from fedcompress.errors import ConfigError
from fedcompress.files.container import Container, open_container
from fedcompress.files.decode import check_base, entry_slices, find_base
from fedcompress.files.distortion import Distortion
from fedcompress.files.encode import Progress, ratios, silent
from fedcompress.files.statistics import Survey
from fedcompress.pipeline.coding import check_layout, codec_of
from fedcompress.types import GROUPS, Layout, Tensors, state_digest, subtract
from fedcompress.wire import Kind

DIGESTS = ("base_digest", "result_digest", "layout_digest", "base_fingerprint", "adapter_digest")


def inspect_file(
    path: Path, *, reference: Path | None = None, base: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Facts about a .fcu file, an adapter folder or a safetensors file.

    Args:
        path: of one of them.
        reference: for a .fcu file, what was encoded: adds how much of its energy was captured.
        base: what the .fcu file was encoded against, if it was.
        progress: called with entries done and entries in all.

    Raises:
        ConfigError: an option is wrong, or does not fit the file.
        WireError: a .fcu file is malformed.
        MismatchError: ``base`` or ``reference`` is another one.
        StateError: an adapter does not parse.
    """
    values = path.is_dir() or path.suffix == SUFFIX
    for name, option in (("--reference", reference), ("--base", base)):
        if option is not None and (values or reference is None):
            raise ConfigError(name, option, "is for an .fcu file; --base is for a --reference")
    if values:
        return _of_values(open_source(path), progress)
    container = open_container(path)
    facts = _of_container(container)
    if reference is not None:
        source = open_source(reference, "--reference")
        compare = _distortion if container.manifests else _distortion_of_update
        facts |= compare(container, source, base, progress).facts()
    return facts


def _by_group(layout: Layout) -> dict[str, int]:
    sizes = Counter({g: 0 for g in GROUPS})
    for spec in layout.tensors:
        sizes[spec.group] += spec.numel
    return {g: n for g, n in sizes.items() if n}


def _of_values(source: Source, progress: Progress) -> dict[str, Any]:
    layout, survey = source.layout, Survey(source, progress)
    digest = state_digest(layout, survey)  # reads every tensor, once
    return {
        "format": source.format,
        "tensors": len(layout.tensors),
        "parameters": layout.numel,
        "parameters_by_group": _by_group(layout),
        "bytes": survey.bytes,
        "bf16_bytes": layout.plain_bytes(2),
        "layout_digest": layout.digest.hex(),
        "adapter_digest": adapter_digest(source.config).hex() if source.config is not None else "",
        "state_digest": digest.hex(),
        "groups": survey.groups(),
        "worth_dropping": survey.notes(),
    }


def _of_container(container: Container) -> dict[str, Any]:
    header = container.parts[0].header
    facts: dict[str, Any] = {"bytes": container.size, "digest": container.digest.hex(), "kind": header.kind.name}
    for name in ("run", "site", "round", "version", "codec", "examples", "init_seed"):
        facts[name] = getattr(header, name)
    for name in DIGESTS:
        facts[name] = getattr(header, name).hex()
    facts["signed"] = all(part.signed for part in container.parts)  # by whom, only a registry can tell
    facts["section_bytes"] = [size for part in container.parts for size in part.section_sizes]
    facts["metrics"] = dict(header.metrics)
    if not container.manifests:
        return facts
    layout = container.layout
    return facts | {
        "codec": container.manifests[0].codec or header.codec,
        "format": container.manifests[0].format,
        "difference": container.has_base,
        "parts": len(container.parts),
        "tensors": len(layout.tensors),
        "parameters": layout.numel,
        "parameters_by_group": _by_group(layout),
        **ratios(container.size, layout),
        "manifest_bytes": sum(p.section_sizes[0] for p in container.parts),
        "sections": _sections(container),
    }


def _sections(container: Container) -> list[dict[str, Any]]:
    """Bytes by clause, over all parts."""
    spec = container.manifests[0].codec
    names = [str(c) for c in CodecSpec.parse(spec, field="manifest.codec").clauses] if spec else []
    rows: list[dict[str, Any]] = []
    for part in container.parts:
        codec = codec_of(part.header)
        assigned = codec.assign(layout_of_slices(entry_slices(part)))
        for number, (clause, members) in enumerate(zip(codec.clauses, assigned, strict=True)):
            if number == len(rows):
                name = names[number] if number < len(names) else str(clause)
                rows.append({"clause": name, "bytes": 0, "parameters": 0})
            sizes = part.section_sizes[1:]
            rows[number]["bytes"] += sizes[number] if number < len(sizes) else 0
            rows[number]["parameters"] += sum(m.numel for m in members)
    for row in rows:
        row["bits_per_parameter"] = 8 * row["bytes"] / row["parameters"] if row["parameters"] else 0.0
    return rows


def _distortion(container: Container, source: Source, base: Path | None, progress: Progress) -> Distortion:
    """Of a file with its layout inside."""
    source.check_fits(container.layout, "--reference")
    held, distortion, done = find_base(container, base), Distortion(), 0
    for part in container.parts:
        pieces = entry_slices(part)
        layout, values = layout_of_slices(pieces), source.values(pieces)
        layout.check(values, what="--reference")
        if held is not None:
            before = held.values(pieces)
            check_base(part.header, layout, before, held.path)
            values = subtract(values, before)
        decoded = decode_sections(codec_of(part.header), layout, container.read(part).sections[1:])
        distortion.add(pieces, values, decoded)
        done += layout.numel
        progress(done, source.layout.numel)
    return distortion


def _distortion_of_update(container: Container, source: Source, base: Path | None, progress: Progress) -> Distortion:
    """Of an envelope from the network, decoded with the layout of the reference."""
    part, layout = container.parts[0], source.layout
    if part.header.kind not in (Kind.UPDATE, Kind.DELTA):
        raise ConfigError("--reference", source.path, f"is for an UPDATE, DELTA or FILE, not a {part.header.kind.name}")
    check_layout(part.header, layout)
    pieces = [TensorSlice(spec=t) for t in layout.tensors]
    values: Tensors = source.values(pieces)
    layout.check(values, what="--reference")
    if base is not None:
        held = open_source(base, "--base")
        held.check_fits(layout, "--base")
        before = held.values(pieces)
        check_base(part.header, layout, before, base)
        values = subtract(values, before)
    distortion = Distortion()
    distortion.add(pieces, values, decode_sections(codec_of(part.header), layout, container.read(part).sections))
    progress(layout.numel, layout.numel)
    return distortion
