"""Encodes adapter folders and safetensors files into self-contained .fcu files, and decodes and inspects these.

Tensors are read, coded and written part by part, so that memory is bounded by a part and
not by the file. The bytes are specified in protos/README.md, section 9.
"""

from fedcompress.files.decode import decode_file
from fedcompress.files.encode import encode_file
from fedcompress.files.inspect import inspect_file

__all__ = ["decode_file", "encode_file", "inspect_file"]
