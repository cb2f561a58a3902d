"""Encodes adapter folders and safetensors files into .fcu files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcompress.adapters import adapter_digest
from fedcompress.adapters.safetensors_io import TensorSource, open_source
from fedcompress.chunks import FILE_CHUNK_ENTRIES, TensorSlice, layout_of_slices, split_layout
from fedcompress.codecs import Clause, CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.transform.code import Transform
from fedcompress.errors import ConfigError
from fedcompress.files.coded_form import CodedForm, write_exact
from fedcompress.files.container import compute_size_ratios
from fedcompress.files.distortion import Distortion
from fedcompress.files.effect.halves import encode_whole_components
from fedcompress.files.effect.measure import EffectDistortion
from fedcompress.files.effect.plan import EffectPlan
from fedcompress.files.effect.units import Effects, check_gathered, find_effects
from fedcompress.files.manifest import MAX_PARTS, Manifest
from fedcompress.files.part_values import restore_sections
from fedcompress.files.progress import Progress, ignore_progress
from fedcompress.pipeline.coding import share_budget
from fedcompress.types import Tensors, TensorSpec, add, state_digest, subtract
from fedcompress.wire import Header, Kind, digest_of, pack

MAX_ERROR = 1.0001  # of the change that an adapter makes, relative; 1 and roundings
DEFAULT_CODEC = "transform(budget=0.28)"  # 0.28 bits a parameter


@dataclass(frozen=True, kw_only=True)
class _EncodedPart:
    """One envelope of a file, with what is needed to measure what was lost in it."""

    data: bytes
    values: Tensors  # what was encoded: values, or differences from the base
    decoded: Tensors  # what a reader will decode in their place
    exact_bytes: int  # bytes of the section of tensors that the codec does not see


@dataclass(frozen=True, kw_only=True)
class _Written:
    """Says what is in a file that was written, and what was lost."""

    distortion: Distortion | EffectDistortion
    size: int  # bytes of the file
    exact_bytes: int  # bytes of the sections of tensors that no codec sees


@dataclass(frozen=True, kw_only=True)
class _EncodingJob:
    """Everything that is the same for all parts of a file that is encoded."""

    source: TensorSource
    base: TensorSource | None
    spec: CodecSpec
    parts: list[list[TensorSlice]]
    seed: int
    effects: Effects | None  # what an adapter without a base does to its model
    plan: EffectPlan | None  # how it is coded

    def encode_part(self, number: int, after: str) -> _EncodedPart:
        """Encode a part; ``after`` is the digest in hex of the envelope before it, empty for the first."""
        slices = self.parts[number]
        layout = layout_of_slices(slices)
        values = self.plan.read(slices) if self.plan else self.source.values(slices)
        base = self.base.values(slices) if self.base else None
        if base is not None:
            layout.check(base, what="--base")
            values = subtract(values, base)
        layout.check(values, what="encode")
        manifest = self._build_manifest(number, after)
        whole = self.plan.layout if self.plan else self.source.layout
        spec = share_budget(self.spec, whole, manifest.coded_layout)
        sections = self._encode_coded(spec, manifest, manifest.form.apply(values))
        exact = manifest.form.exact
        if exact:
            sections = (*sections, write_exact(layout, exact, values))
        decoded = restore_sections(spec, manifest, sections)
        if self.plan is not None:
            self.plan.check_copies(values, decoded)
        reached = decoded if base is None else add(base, decoded)
        layout.check(reached, what="encode: values reached")
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
        data = pack(header, (manifest.to_section(), *sections))
        size = len(sections[-1]) if exact else 0
        return _EncodedPart(data=data, values=values, decoded=decoded, exact_bytes=size)

    def _encode_coded(self, spec: CodecSpec, manifest: Manifest, coded: Tensors) -> tuple[bytes, ...]:
        """Encode what the codec sees of a part."""
        layout = manifest.coded_layout
        return encode_whole_components(
            lambda tensors: encode_sections(spec, layout, tensors, seed=self.seed),
            lambda sections: decode_sections(spec, layout, sections),
            self.plan.list_weighed(manifest.pieces) if self.plan is not None else [],
            coded,
        )

    def _build_manifest(self, number: int, after: str) -> Manifest:
        """Build the manifest of a part; the first one says what is true of the whole file, too."""
        manifest = Manifest(
            format=self.source.format,
            pieces=self.parts[number],
            part=number,
            parts=len(self.parts),
            after=after,
            form=self.plan.find_form(self.parts[number]) if self.plan else CodedForm(),
        )
        if number:
            return manifest
        config, metadata = self.source.config, self.source.metadata
        kept = self.source.kept
        return replace(manifest, codec=str(self.spec), adapter_config=config, metadata=metadata, kept=kept)


def choose_codec(codec: str = "", budget: str = "") -> CodecSpec:
    """Choose the codec that two options ask for; without either it is ``DEFAULT_CODEC``.

    Args:
        codec: a codec spec.
        budget: a size, as ``64KiB``, or bits a parameter, as ``0.28``, for the transform code.

    Raises:
        ConfigError: both are given, or one does not parse.
    """
    if codec and budget:
        raise ConfigError("--budget", budget, "must not be given together with --codec")
    if budget:
        try:
            return CodecSpec((Clause((), Transform(budget=budget.strip())),))
        except ConfigError as error:
            raise ConfigError(
                "--budget", budget, "must be a size (1000B, 64KB, 64 KiB, 2MiB, 1GiB) or bits a parameter"
            ) from error
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
    progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """Encode a PEFT folder or a safetensors file into a .fcu file, written whole or not at all.

        >>> written = encode_file(Path("adapter"), Path("a.fcu"), budget="0.28")  # doctest: +SKIP
        >>> written["bytes"] == Path("a.fcu").stat().st_size  # doctest: +SKIP
        True

    Args:
        path: a PEFT folder or a safetensors file.
        out: the file to write.
        base: a folder or file with the same tensors; the difference from it is encoded.
        codec: a codec spec; ``transform(budget=0.28)`` if empty.
        budget: in place of a codec, a size or bits a parameter for the transform code.
        seed: of what is random in the codec, from 0 to 2^63 - 1.
        part_entries: entries that are coded together; memory grows with it.
        progress: is called with the entries that are done and the entries in all.

    Returns:
        What was written: ``path``, ``format``, ``codec``, ``bytes``, numbers of ``parts``, ``tensors`` and
        ``parameters``, ``bits_per_parameter``, ``ratio_fp32`` and ``ratio_bf16``, and ``captured``, the share of the
        energy that a decoder gets. Of an adapter without a base that is the energy of the change that it makes;
        then there are ``error``, the relative error of the change, ``worst_module`` and ``worst_error``, a ``note`` if
        nothing is left of it, ``coded_parameters``, ``exact_bytes``, and ``exact``, a row for each reason why tensors
        are coded exactly. ``kept_bytes`` are those of tensors that are no parameters, if there are any.

    Raises:
        ConfigError: an option is wrong, the base does not fit, an adapter has empty tensors, or the codec would lose
            more than all of what an adapter does.
        StateError: a file does not parse.
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    if not 0 <= seed < 1 << 63:
        raise ConfigError("--seed", seed, "must be from 0 to 2^63 - 1")
    if out.is_dir():
        raise ConfigError("-o", out, "must be a file, not a folder")
    job = _prepare(path, base, choose_codec(codec, budget), seed, part_entries)
    written = _write_parts(job, out, progress)
    return {"path": str(out), **_describe(job, written.size), **_describe_loss(job, written)}


def _describe(job: _EncodingJob, size: int) -> dict[str, Any]:
    """Say what was encoded, and into how many bytes."""
    layout = job.source.layout
    return {
        "format": job.source.format,
        "codec": str(job.spec),
        "bytes": size,
        "parts": len(job.parts),
        "tensors": len(layout.tensors),
        "parameters": layout.numel,
        **compute_size_ratios(size, layout),
        **({"kept_bytes": sum(len(t.data) for t in job.source.kept.values())} if job.source.kept else {}),
    }


def _describe_loss(job: _EncodingJob, written: _Written) -> dict[str, Any]:
    """Say what was lost of what was encoded: of an adapter without a base, of the change that it makes."""
    if job.plan is None or job.effects is None or not isinstance(written.distortion, EffectDistortion):
        return {"captured": written.distortion.captured}
    summary = written.distortion.summarize(worst=1)
    facts: dict[str, Any] = {"captured": summary["captured"], "error": summary["error"]}
    if summary["error"] == 1:
        facts["note"] = "nothing is left of the change that the adapter makes: give it more bits"
    for row in summary["worst_modules"]:
        facts |= {"worst_module": row["module"], "worst_error": row["error"]}
    exact = [job.source.layout.by_name[n] for n in sorted(job.plan.exact)]
    facts["coded_parameters"] = job.plan.layout.numel
    facts["exact_bytes"] = written.exact_bytes
    reasons: dict[str, list[TensorSpec]] = {}
    for spec in exact:
        reasons.setdefault(job.effects.exact.get(spec.name, "singular values that are in the factors"), []).append(spec)
    facts["exact"] = [
        {"why": why, "tensors": len(specs), "parameters": sum(t.numel for t in specs), "example": specs[0].name}
        for why, specs in reasons.items()
    ]
    return facts


def _prepare(path: Path, base: Path | None, spec: CodecSpec, seed: int, part_entries: int) -> _EncodingJob:
    """Read and compare headers, and cut the layout, before any value is read."""
    source = open_source(path, keep=True)
    check_gathered(source)
    base_source = open_source(base, "--base", keep=True) if base is not None else None
    if base_source is not None:
        base_source.check_fits(source.layout, "--base")
    effects = find_effects(source) if base is None else None
    plan = EffectPlan(source, effects, spec) if effects is not None else None
    spec.assign(plan.layout if plan is not None else source.layout)
    parts = split_layout(source.layout, part_entries)
    if len(parts) > MAX_PARTS:
        raise ConfigError("PATH", path, f"at most {MAX_PARTS} parts of {part_entries} entries")
    return _EncodingJob(source=source, base=base_source, spec=spec, parts=parts, seed=seed, effects=effects, plan=plan)


def _check_error(job: _EncodingJob, error: float) -> None:
    """Raise ``ConfigError`` if a model would be nearer to the adapter's without it than with what is decoded."""
    if error > MAX_ERROR:
        rule = (
            f"misses the change that the adapter makes by {error:.3g} of it: must be at most 1, which is without any "
            f"adapter; use another codec, or give --base"
        )
        raise ConfigError("--codec", str(job.spec), rule)


def _write_parts(job: _EncodingJob, out: Path, progress: Progress) -> _Written:
    """Write the parts one after another; return what was lost in them, and the bytes of the file."""
    effect = EffectDistortion(job.effects, job.source) if job.effects is not None else None
    distortion = Distortion()
    size = 0
    exact_bytes = 0
    done = 0
    after = ""
    temporary = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    progress(0, job.source.layout.numel)
    try:
        with temporary.open("wb") as file:
            for number, slices in enumerate(job.parts):
                part = job.encode_part(number, after)
                file.write(part.data)
                if effect is not None:
                    effect.add(slices, part.decoded)
                else:
                    distortion.add(slices, part.values, part.decoded)
                size += len(part.data)
                exact_bytes += part.exact_bytes
                after = digest_of(part.data).hex()
                done += sum(s.spec.numel for s in slices)
                progress(done, job.source.layout.numel)
        if effect is not None:
            _check_error(job, effect.summarize()["error"])
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return _Written(distortion=effect or distortion, size=size, exact_bytes=exact_bytes)
