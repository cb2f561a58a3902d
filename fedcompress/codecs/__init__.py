"""Turns the tensors of an update into bytes and back.

A codec is written as a spec string, so that it fits in Flower's flat run config::

    topk(density=0.05)|ternary; head: int(bits=4)

A spec consists of clauses, separated by ``;``. A clause may begin with the tensor groups that it is for
(``head:``, ``lora_a,lora_b:``, or ``lora:`` for both factors); the clause without groups takes all other tensors.
The rest of a clause is either a code that takes whole tensors (``transform(budget=0.25)``), or a quantizer, or a
selector and a quantizer joined by ``|``. Positions and symbols are always entropy-coded, so that is no stage.

``CODECS`` is the one table of selectors, quantizers, codes and presets. ``preview`` shows what a codec does to a
few numbers::

    >>> from fedcompress.codecs import preview
    >>> print(preview("topk(density=0.5)|ternary", [0.9, -0.2, -1.1, 0.1]))
    9 bytes, relative squared error 0.034: [1, 0, -1, 0]
"""

from fedcompress.codecs.error_feedback import ErrorFeedback, pack_residual, unpack_residual
from fedcompress.codecs.sections import Preview, decode_sections, encode_sections, preview
from fedcompress.codecs.spec import Clause, CodecSpec
from fedcompress.codecs.table import CODECS, CodecRow, sample_spec

__all__ = [
    "CODECS",
    "Clause",
    "CodecRow",
    "CodecSpec",
    "ErrorFeedback",
    "Preview",
    "decode_sections",
    "encode_sections",
    "pack_residual",
    "preview",
    "sample_spec",
    "unpack_residual",
]
