"""The public API of fedcompress is here: compressed federated fine-tuning for Flower, PEFT and DeepSpeed.

The library holds what two machines must agree on, and the maths. Nothing heavy is
imported here; every name is loaded on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    # layouts and states
    "Layout": "fedcompress.types",
    "TensorSpec": "fedcompress.types",
    "state_digest": "fedcompress.types",
    # codecs, and envelopes of updates and states
    "CodecSpec": "fedcompress.codecs",
    "ErrorFeedback": "fedcompress.codecs",
    "Header": "fedcompress.wire",
    "Kind": "fedcompress.wire",
    "encode_update": "fedcompress.pipeline",
    "decode_update": "fedcompress.pipeline",
    "encode_delta": "fedcompress.pipeline",
    "decode_state": "fedcompress.pipeline",
    # merging
    "Merger": "fedcompress.merging",
    "parse_rule": "fedcompress.merging",
    "parse_server_optimizer": "fedcompress.merging",
    # optimizers
    "build_optimizer": "fedcompress.optim",
    # adapters and files
    "load_adapter": "fedcompress.adapters",
    "save_adapter": "fedcompress.adapters",
    "merge_adapters": "fedcompress.files.merge",
    "encode_file": "fedcompress.files",
    "decode_file": "fedcompress.files",
    "inspect_file": "fedcompress.files",
    # the tables of methods
    "CODECS": "fedcompress.codecs",
    "RULES": "fedcompress.merging",
    "OPTIMIZERS": "fedcompress.optim",
    "ADAPTERS": "fedcompress.adapters",
    "SERVER_OPTIMIZERS": "fedcompress.merging",
    # every error of the library
    "FedCompressError": "fedcompress.errors",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'fedcompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
