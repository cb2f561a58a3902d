"""Inspects a .fcu file, an adapter folder or a safetensors file, for a program or a person to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.adapters import adapter_digest
from fedcompress.adapters.kept_tensors import KeptTensor
from fedcompress.adapters.safetensors_io import SUFFIX, TensorSource, open_source
from fedcompress.adapters.torch_files import SUFFIXES as TORCH_SUFFIXES
from fedcompress.chunks import TensorSlice, layout_of_slices
from fedcompress.codecs import CodecSpec, decode_sections
from fedcompress.errors import ConfigError
from fedcompress.files.container import Container, compute_size_ratios, open_container
from fedcompress.files.distortion import Distortion
from fedcompress.files.effect.measure import EffectDistortion
from fedcompress.files.effect.units import find_effects
from fedcompress.files.part_values import decode_part, open_base, read_base
from fedcompress.files.progress import Progress, ignore_progress
from fedcompress.files.statistics import SourceStatistics
from fedcompress.pipeline.coding import check_layout, parse_codec
from fedcompress.types import GROUPS, Layout, state_digest, subtract
from fedcompress.wire import Kind

FIELDS = ("run", "site", "round", "version", "codec", "examples", "init_seed")  # of a header, shown as they are
DIGESTS = ("base_digest", "result_digest", "layout_digest", "base_fingerprint", "adapter_digest")  # shown in hex


def inspect_file(
    path: Path,
    *,
    reference: Path | None = None,
    base: Path | None = None,
    allow_large: bool = False,
    progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """Describe a .fcu file, an adapter folder or a safetensors file.

        >>> inspect_file(Path("a.fcu"))["kind"]  # doctest: +SKIP
        'FILE'

    Args:
        path: one of the three.
        reference: only for a .fcu file: what was encoded; adds how much of its energy was captured, of an adapter
            without a base that of the changes that it makes, with the modules that lost most.
        base: only with a reference: what the .fcu file was encoded against.
        allow_large: take a .fcu file that decodes to 10,000 times its size, or for hours, as one from a stranger may.
        progress: is called with the entries that are done and the entries in all.

    Returns:
        Sizes, digests and, for stored values, statistics by group, under the names that ``fedcompress inspect
        --json`` prints.

    Raises:
        ConfigError: an option is wrong, or does not fit the file.
        WireError: a .fcu file is malformed; ``LimitError``, if it asks for too much.
        MismatchError: ``base`` or ``reference`` is another one.
        StateError: an adapter does not parse.
    """
    has_values = path.is_dir() or path.suffix in (SUFFIX, *TORCH_SUFFIXES)
    for name, option in (("--reference", reference), ("--base", base)):
        if option is not None and (has_values or reference is None):
            raise ConfigError(name, option, "is for an .fcu file; --base is for a --reference")
    if has_values:
        return _describe_values(open_source(path, keep=True), progress)
    container = open_container(path, allow_large=allow_large)
    description = _describe_container(container)
    if reference is not None:
        source = open_source(reference, "--reference", keep=True)
        measure = _measure_file if container.manifests else _measure_update
        description |= measure(container, source, base, progress).summarize()
    return description


def _count_by_group(layout: Layout) -> dict[str, int]:
    """Count the parameters of each group that has any."""
    sizes = Counter({g: 0 for g in GROUPS})
    for spec in layout.tensors:
        sizes[spec.group] += spec.numel
    return {group: count for group, count in sizes.items() if count}


def _describe_values(source: TensorSource, progress: Progress) -> dict[str, Any]:
    layout = source.layout
    statistics = SourceStatistics(source, progress)
    digest = state_digest(layout, statistics)  # reads every tensor once, which fills the statistics
    return {
        "format": source.format,
        "tensors": len(layout.tensors),
        "parameters": layout.numel,
        "parameters_by_group": _count_by_group(layout),
        "bytes": statistics.bytes,
        "bf16_bytes": layout.plain_bytes(2),
        "layout_digest": layout.digest.hex(),
        "adapter_digest": adapter_digest(source.config).hex() if source.config is not None else "",
        "state_digest": digest.hex(),
        **_describe_kept(source.kept),
        "groups": statistics.groups(),
        "worth_dropping": statistics.notes(),
    }


def _describe_kept(kept: Mapping[str, KeptTensor]) -> dict[str, Any]:
    """Describe tensors that are kept as they are, which are no parameters; nothing if there are none."""
    if not kept:
        return {}
    return {"kept_tensors": len(kept), "kept_bytes": sum(len(t.data) for t in kept.values())}


def _describe_container(container: Container) -> dict[str, Any]:
    header = container.parts[0].header
    description: dict[str, Any] = {
        "bytes": container.size,
        "digest": container.digest.hex(),
        "kind": header.kind.name,
        **{name: getattr(header, name) for name in FIELDS},
        **{name: getattr(header, name).hex() for name in DIGESTS},
        "signed": all(part.signed for part in container.parts),  # by whom, only a registry can tell
        "section_bytes": [size for part in container.parts for size in part.section_sizes],
        "metrics": dict(header.metrics),
    }
    if not container.manifests:
        return description
    layout = container.layout
    return description | {
        "codec": container.manifests[0].codec or header.codec,
        "format": container.manifests[0].format,
        "difference": container.has_base,
        "parts": len(container.parts),
        "tensors": len(layout.tensors),
        "parameters": layout.numel,
        "parameters_by_group": _count_by_group(layout),
        **compute_size_ratios(container.size, layout),
        **_describe_kept(container.manifests[0].kept),
        "manifest_bytes": sum(p.section_sizes[0] for p in container.parts),
        "sections": _describe_sections(container),
    }


def _describe_sections(container: Container) -> list[dict[str, Any]]:
    """Sum up bytes and parameters by clause of the codec, and of what is coded exactly, over all parts."""
    whole_codec = container.manifests[0].codec
    clauses = CodecSpec.parse(whole_codec, field="manifest.codec").clauses if whole_codec else ()
    names = [str(clause) for clause in clauses]
    rows: list[dict[str, Any]] = []
    exact: dict[str, Any] = {"clause": "exact", "bytes": 0, "parameters": 0}
    for part in container.parts:
        codec = parse_codec(part.header)
        assert part.manifest is not None
        assigned = codec.assign(part.manifest.coded_layout)
        sizes = part.section_sizes[1:]  # the first one is the manifest
        for number, (clause, members) in enumerate(zip(codec.clauses, assigned, strict=True)):
            if number == len(rows):
                name = names[number] if number < len(names) else str(clause)
                rows.append({"clause": name, "bytes": 0, "parameters": 0})
            rows[number]["bytes"] += sizes[number] if number < len(sizes) else 0
            rows[number]["parameters"] += sum(m.numel for m in members)
        if part.manifest.form.exact:
            exact["bytes"] += sizes[-1]
            exact["parameters"] += part.manifest.layout.numel - part.manifest.coded_layout.numel
    rows += [exact] if exact["parameters"] else []
    for row in rows:
        row["bits_per_parameter"] = 8 * row["bytes"] / row["parameters"] if row["parameters"] else 0.0
    return rows


def _measure_file(
    container: Container, source: TensorSource, base: Path | None, progress: Progress
) -> Distortion | EffectDistortion:
    """Measure what a file with its layout inside has lost of its source; without a base, of what an adapter does."""
    source.check_fits(container.layout, "--reference")
    base_source = open_base(container, base)
    effects = find_effects(source) if base_source is None else None
    effect = EffectDistortion(effects, source) if effects is not None else None
    distortion = Distortion()
    done = 0
    for part in container.parts:
        layout = layout_of_slices(part.slices)
        values = source.values(part.slices)
        layout.check(values, what="--reference")
        if base_source is not None:
            values = subtract(values, read_base(base_source, part.header, part.slices))
        decoded = decode_part(container, part)
        if effect is not None:
            effect.add(part.slices, decoded)
        else:
            distortion.add(part.slices, values, decoded)
        done += layout.numel
        progress(done, source.layout.numel)
    return effect or distortion


def _measure_update(container: Container, source: TensorSource, base: Path | None, progress: Progress) -> Distortion:
    """Measure what an envelope from the network has lost of its source, whose layout it is decoded with."""
    part, layout = container.parts[0], source.layout
    if part.header.kind not in (Kind.UPDATE, Kind.DELTA):
        raise ConfigError("--reference", source.path, f"is for an UPDATE, DELTA or FILE, not a {part.header.kind.name}")
    check_layout(part.header, layout)
    slices = [TensorSlice(spec=t) for t in layout.tensors]
    values = source.values(slices)
    layout.check(values, what="--reference")
    if base is not None:
        base_source = open_source(base, "--base", keep=True)
        base_source.check_fits(layout, "--base")
        values = subtract(values, read_base(base_source, part.header, slices))
    distortion = Distortion()
    distortion.add(slices, values, decode_sections(parse_codec(part.header), layout, container.read(part).sections))
    progress(layout.numel, layout.numel)
    return distortion
