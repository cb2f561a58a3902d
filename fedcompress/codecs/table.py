"""Lists all codec stages and presets in one literal table.

Every stage shows an example in the docstring of its class. These are the presets, on a factor of 8 x 512 that has
a strong direction::

    >>> import numpy as np
    >>> from fedcompress.codecs import CODECS, preview
    >>> wave = np.outer([3, -2, 4, 1, 5, -1, 2, 6], np.arange(512) % 19 - 9) + np.arange(4096).reshape(8, 512) % 5
    >>> for name, row in CODECS.items():
    ...     if row.kind == "preset":
    ...         result = preview(name, wave, group="lora_a")
    ...         print(f"{name}: {result.size} bytes, relative squared error {result.error:.1g}")
    int8: 3441 bytes, relative squared error 5e-05
    int4: 1661 bytes, relative squared error 0.02
    sign: 274 bytes, relative squared error 0.4
    bitdelta: 275 bytes, relative squared error 0.4
    stc: 48 bytes, relative squared error 0.9
    sparseloco: 69 bytes, relative squared error 0.9
    dare: 1558 bytes, relative squared error 8
    darex-q: 1558 bytes, relative squared error 2
    lora-ternary: 205 bytes, relative squared error 0.5
    lora-transform: 106 bytes, relative squared error 0.2
    lora-transform-down: 184 bytes, relative squared error 0.05
"""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.codecs.base import Quantizer, Selector, TensorCode
from fedcompress.codecs.codes.compeft import ComPEFT
from fedcompress.codecs.codes.dct import DCT
from fedcompress.codecs.codes.powersgd import PowerSGD
from fedcompress.codecs.codes.seeds import Seeds
from fedcompress.codecs.codes.subspace import SubspaceCode
from fedcompress.codecs.codes.svd import SVD
from fedcompress.codecs.quantizers.exact import BFloat16, Exact
from fedcompress.codecs.quantizers.integer import Integer
from fedcompress.codecs.quantizers.nf4 import NormalFloat
from fedcompress.codecs.quantizers.power import Power
from fedcompress.codecs.quantizers.qsgd import QSGD
from fedcompress.codecs.quantizers.ternary import Ternary
from fedcompress.codecs.quantizers.twobit import TwoBit
from fedcompress.codecs.selectors.allocate import Allocate
from fedcompress.codecs.selectors.chunked import Chunked
from fedcompress.codecs.selectors.nm import NM
from fedcompress.codecs.selectors.random import Random
from fedcompress.codecs.selectors.threshold import Threshold
from fedcompress.codecs.selectors.topk import TopK
from fedcompress.codecs.transform.code import Transform


@dataclass(frozen=True, kw_only=True)
class CodecRow:
    """Describes one row of the table: a stage, which has a ``config``, or a preset, which has a ``spec``.

    Args:
        kind: ``select``, ``quantize``, ``code`` (a clause by itself) or ``preset``.
        law: what is promised of the decoded values; tests check it.
        paper: the source, or ``-``.
        config: the dataclass of a stage; its fields are the parameters.
        spec: what a preset stands for.
        example: parameters to show and to test with, where some have no default.
    """

    kind: str
    law: str
    paper: str
    config: type[Selector] | type[Quantizer] | type[TensorCode] | None = None
    spec: str = ""
    example: str = ""


CODECS: dict[str, CodecRow] = {
    "topk": CodecRow(
        kind="select",
        config=TopK,
        example="density=0.05",
        law="keeps exactly ceil(density * n) entries of largest magnitude; the rest become 0",
        paper="Strom 2015; Aji and Heafield 2017 (arXiv:1704.05021)",
    ),
    "allocate": CodecRow(
        kind="select",
        config=Allocate,
        example="budget=0.3",
        law="top-k with the density of each tensor that leaves least error for a budget of bits",
        paper="Shoham and Gersho 1988, bit allocation for an arbitrary set of quantizers",
    ),
    "threshold": CodecRow(
        kind="select",
        config=Threshold,
        example="at=0.001",
        law="bounded error: what becomes 0 is below at",
        paper="Strom 2015, scalable distributed DNN training, section 4",
    ),
    "chunk": CodecRow(
        kind="select",
        config=Chunked,
        law="keeps exactly k of every chunk; the rest become 0",
        paper="SparseLoCo (arXiv:2508.15706)",
    ),
    "nm": CodecRow(
        kind="select",
        config=NM,
        law="keeps exactly n of every m entries; the rest become 0",
        paper="Mishra et al. 2021 (arXiv:2104.08378)",
    ),
    "random": CodecRow(
        kind="select",
        config=Random,
        example="density=0.1",
        law="unbiased with q=0: each entry is kept with probability density and divided by it",
        paper="DARE (arXiv:2311.03099); DAREx-q (arXiv:2410.09344)",
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
        law="bounded error: at most half a step of 2.02 * absmax / (2^bits - 2); stochastic: unbiased, below a step",
        paper="uniform symmetric quantization with entropy-coded symbols",
    ),
    "nf4": CodecRow(
        kind="quantize",
        config=NormalFloat,
        law="bounded error: at most 0.16 * absmax of the block",
        paper="QLoRA (arXiv:2305.14314), appendix E",
    ),
    "twobit": CodecRow(
        kind="quantize",
        config=TwoBit,
        law="each of four bins becomes the mean of its members: error at most the variance, up to rounding",
        paper="SparseLoCo (arXiv:2508.15706)",
    ),
    "qsgd": CodecRow(
        kind="quantize",
        config=QSGD,
        law="unbiased; error below 1.01 * norm / levels",
        paper="Alistarh et al. 2017 (arXiv:1610.02132)",
    ),
    "power": CodecRow(
        kind="quantize",
        config=Power,
        law="bounded error: at most 0.51 * root * absmax / (2^(bits-1) - 1), and finer near zero",
        paper="NUPES (arXiv:2308.05600)",
    ),
    "bf16": CodecRow(kind="quantize", config=BFloat16, law="round to nearest even; relative error <= 2^-8", paper="-"),
    "none": CodecRow(kind="quantize", config=Exact, law="exact", paper="-"),
    "transform": CodecRow(
        kind="code",
        config=Transform,
        example="budget=0.28",
        law="squared error at most the squared norm, up to rounding; at most budget",
        paper="reverse water-filling over singular components, trellis-coded; our own (see its file)",
    ),
    "compeft": CodecRow(
        kind="code",
        config=ComPEFT,
        law="sign * alpha * std for the largest entries of all tensors together; the rest become 0",
        paper="ComPEFT (arXiv:2311.13171)",
    ),
    "svd": CodecRow(
        kind="code",
        config=SVD,
        law="least squared error of its rank, up to bfloat16",
        paper="Eckart and Young 1936; Fisher-weighted: Hsu et al. 2022 (arXiv:2207.00112)",
    ),
    "powersgd": CodecRow(
        kind="code",
        config=PowerSGD,
        law="a projection: squared error at most the squared norm, up to bfloat16",
        paper="Vogels et al. 2019 (arXiv:1905.13727)",
    ),
    "dct": CodecRow(
        kind="code",
        config=DCT,
        law="squared error is the energy of the columns left out, up to bfloat16",
        paper="Modoranu et al. 2025 (arXiv:2505.17967)",
    ),
    "subspace": CodecRow(
        kind="code",
        config=SubspaceCode,
        law="a projection on a seeded basis: squared error at most the squared norm, up to bits",
        paper="our own; bases as in DCT-AdamW (arXiv:2505.17967) and sketched updates (arXiv:1610.05492, section 3)",
    ),
    "seeds": CodecRow(
        kind="code",
        config=Seeds,
        law="squared error at most the squared norm; exact for updates of a zeroth-order optimizer",
        paper="MeZO (arXiv:2305.17333); FedKSeed (arXiv:2312.06353)",
    ),
    "int8": CodecRow(kind="preset", spec="int(bits=8)", law="as int", paper="-"),
    "int4": CodecRow(kind="preset", spec="int(bits=4)", law="as int", paper="-"),
    "sign": CodecRow(
        kind="preset",
        spec="ternary",
        law="sign * mean magnitude of each tensor; meant for error feedback",
        paper="EF-signSGD, Karimireddy et al. 2019 (arXiv:1901.09847)",
    ),
    "bitdelta": CodecRow(
        kind="preset",
        spec="ternary; head,other: bf16",
        law="sign * mean magnitude of each factor; other tensors rounded",
        paper="BitDelta, Liu et al. 2024 (arXiv:2402.10193), before its scales are distilled",
    ),
    "stc": CodecRow(
        kind="preset",
        spec="topk(density=0.01)|ternary",
        law="as its stages; meant for error feedback",
        paper="Sattler et al. 2019 (arXiv:1903.02891)",
    ),
    "sparseloco": CodecRow(
        kind="preset",
        spec="chunk(k=64,of=4096)|twobit",
        law="as its stages; meant for error feedback with decay 0.95",
        paper="SparseLoCo (arXiv:2508.15706)",
    ),
    "dare": CodecRow(
        kind="preset",
        spec="random(density=0.1)|none",
        law="unbiased",
        paper="DARE (arXiv:2311.03099)",
    ),
    "darex-q": CodecRow(
        kind="preset",
        spec="random(density=0.1,q=0.2)|none",
        law="kept entries are divided by q; expected value is density / q times the entry",
        paper="DAREx-q (arXiv:2410.09344)",
    ),
    "lora-ternary": CodecRow(
        kind="preset",
        spec="topk(density=0.1)|ternary; head: int(bits=4)",
        law="as its stages; meant for error feedback",
        paper="factors as in stc; a head learnt from zero must not be pruned like a factor",
    ),
    "lora-transform": CodecRow(
        kind="preset",
        spec="transform(budget=0.21,head=30.0)",
        law="as transform; meant for error feedback",
        paper="as transform; a head learnt from zero must not be coded as coarsely as a factor",
    ),
    "lora-transform-down": CodecRow(
        kind="preset",
        spec="transform(budget=0.37,head=30.0)",
        law="as transform; meant for error feedback",
        paper="as transform; one message serves all sites, and its errors are in every site's start",
    ),
}


def sample_spec(name: str) -> str:
    """Return a spec that uses a row of the table, for documentation and tests."""
    row = CODECS[name]
    stage = row.spec or (f"{name}({row.example})" if row.example else name)
    return f"{stage}|none" if row.kind == "select" else stage
