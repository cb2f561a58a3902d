"""Codecs: how the tensors of an update become bytes.

A codec is written as a spec string, so that it fits in Flower's flat run config::

    topk(density=0.05)|ternary; head: int(bits=4)

Clauses are separated by ``;``. A clause may begin with the tensor groups it is for
(``head:``, ``lora_a,lora_b:``, ``lora:`` for both factors); the one without groups takes
the rest. A clause is an optional selection stage and a quantization stage, joined by
``|``. Positions and symbols are entropy-coded by the writer, which is not a stage.

``CODECS`` is the one table of stages and presets.
"""

from fedcompress.codecs.error_feedback import Feedback, pack_residual, unpack_residual
from fedcompress.codecs.sections import decode_sections, encode_sections
from fedcompress.codecs.spec import Clause, CodecSpec
from fedcompress.codecs.table import CODECS, CodecRow, sample_spec

__all__ = [
    "CODECS",
    "Clause",
    "CodecRow",
    "CodecSpec",
    "Feedback",
    "decode_sections",
    "encode_sections",
    "pack_residual",
    "sample_spec",
    "unpack_residual",
]
