"""The one literal table of codec stages and presets."""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.codecs.base import Code, Quantizer, Selector
from fedcompress.codecs.exact import BFloat16, Exact
from fedcompress.codecs.integer import Integer
from fedcompress.codecs.ternary import Ternary
from fedcompress.codecs.topk import TopK
from fedcompress.codecs.transform import Transform


@dataclass(frozen=True, kw_only=True)
class CodecRow:
    """One row of the table: a stage (``config``) or a preset (``spec``)."""

    kind: str  # "select", "quantize", "code" (a clause by itself) or "preset"
    law: str
    paper: str
    config: type[Selector] | type[Quantizer] | type[Code] | None = None
    spec: str = ""


CODECS: dict[str, CodecRow] = {
    "topk": CodecRow(
        kind="select",
        config=TopK,
        law="keeps exactly ceil(density * n) entries of largest magnitude; the rest become 0",
        paper="Strom 2015; Aji and Heafield 2017 (arXiv:1704.05021)",
    ),
    "ternary": CodecRow(
        kind="quantize",
        config=Ternary,
        law="each value becomes sign * scale, scale = mean magnitude: least squared error for given signs",
        paper="Sattler et al. 2019, sparse ternary compression (arXiv:1903.02891), section IV-B",
    ),
    "int": CodecRow(
        kind="quantize",
        config=Integer,
        law="bounded error: |x - C(x)| <= 1.01 * absmax / (2^bits - 2), one bf16 scale per block",
        paper="uniform symmetric quantization with entropy-coded symbols",
    ),
    "bf16": CodecRow(kind="quantize", config=BFloat16, law="round to nearest even; relative error <= 2^-8", paper="-"),
    "none": CodecRow(kind="quantize", config=Exact, law="exact", paper="-"),
    "transform": CodecRow(
        kind="code",
        config=Transform,
        law="squared error at most the squared norm, up to rounding; at most budget",
        paper="reverse water-filling over singular components, trellis-coded; our own (see its file)",
    ),
    "int8": CodecRow(kind="preset", spec="int(bits=8)", law="as int", paper="-"),
    "int4": CodecRow(kind="preset", spec="int(bits=4)", law="as int", paper="-"),
    "stc": CodecRow(
        kind="preset",
        spec="topk(density=0.01)|ternary",
        law="as its stages; meant for error feedback",
        paper="Sattler et al. 2019 (arXiv:1903.02891)",
    ),
    "lora-ternary": CodecRow(
        kind="preset",
        spec="topk(density=0.1)|ternary; head: int(bits=4)",
        law="as its stages; meant for error feedback",
        paper="factors as in stc; a head learnt from zero must not be pruned like a factor",
    ),
}
