"""The public names of the library are exactly these, and nothing heavy is imported for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fedcompress

PUBLIC = {
    "ADAPTERS",
    "CODECS",
    "CodecSpec",
    "ErrorFeedback",
    "FedCompressError",
    "Header",
    "Kind",
    "Layout",
    "Merger",
    "OPTIMIZERS",
    "RULES",
    "SERVER_OPTIMIZERS",
    "TensorSpec",
    "__version__",
    "build_optimizer",
    "decode_file",
    "decode_state",
    "decode_update",
    "encode_delta",
    "encode_file",
    "encode_update",
    "inspect_file",
    "load_adapter",
    "merge_adapters",
    "parse_rule",
    "parse_server_optimizer",
    "save_adapter",
    "state_digest",
}


def test_the_set_of_public_names() -> None:
    assert set(fedcompress.__all__) == PUBLIC
    assert len(fedcompress.__all__) == len(PUBLIC)


def test_public_names_are_importable() -> None:
    assert all(getattr(fedcompress, name) is not None for name in fedcompress.__all__)
    assert dir(fedcompress) == sorted(fedcompress.__all__)
    with pytest.raises(AttributeError):
        fedcompress.nothing  # noqa: B018


def test_public_names_are_explained() -> None:
    """Each function and class says what it is; tables are shown by a command."""
    for name in PUBLIC - {"__version__"}:
        value = getattr(fedcompress, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), name
        else:
            assert name.isupper(), name


def test_no_name_brings_torch() -> None:
    load = "for name in fedcompress.__all__: getattr(fedcompress, name)"
    code = f"import fedcompress, sys\n{load}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
