"""fedcompress: compressed federated fine-tuning for Flower, PEFT and DeepSpeed.

The library holds what two machines must agree on, and the maths. Nothing heavy is
imported here; every name is loaded on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "CodecSpec": "fedcompress.codecs",
    "Header": "fedcompress.wire",
    "Kind": "fedcompress.wire",
    "FedCompressError": "fedcompress.errors",
    "Layout": "fedcompress.types",
    "TensorSpec": "fedcompress.types",
    "decode_file": "fedcompress.files",
    "decode_update": "fedcompress.pipeline",
    "encode_file": "fedcompress.files",
    "encode_update": "fedcompress.pipeline",
    "state_digest": "fedcompress.types",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'fedcompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
