"""Small layouts and values shared by the tests."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedcompress.types import Layout, Tensors, TensorSpec, state_digest
from fedcompress.wire import Header, Kind

ROOT = Path(__file__).resolve().parents[1]  # of the repository


def lora_layout(modules: int = 2, rank: int = 4, width: int = 24, labels: int = 3) -> Layout:
    """A small adapter: LoRA pairs and a head."""
    specs = []
    for i in range(modules):
        specs.append(TensorSpec(name=f"m{i}.lora_A.weight", shape=(rank, width), group="lora_a"))
        specs.append(TensorSpec(name=f"m{i}.lora_B.weight", shape=(width, rank), group="lora_b"))
    specs.append(TensorSpec(name="head.bias", shape=(labels,), group="head"))
    specs.append(TensorSpec(name="head.weight", shape=(labels, width), group="head"))
    return Layout(tuple(specs))


def normal(layout: Layout, seed: int, scale: float = 1.0) -> Tensors:
    """Gaussian values, float32."""
    generator = np.random.default_rng(seed)
    return {t.name: (scale * generator.standard_normal(t.shape)).astype(np.float32) for t in layout.tensors}


def update_header(layout: Layout, base: Tensors, **changes: object) -> Header:
    """Header of an update from ``base``."""
    fields: dict[str, object] = {
        "kind": Kind.UPDATE,
        "run": "run",
        "site": "north",
        "round": 1,
        "version": 0,
        "codec": "none",
        "layout_digest": layout.digest,
        "base_digest": state_digest(layout, base),
        "examples": 10,
    }
    return Header(**{**fields, **changes})


def equal(left: Tensors, right: Tensors) -> bool:
    """Bit for bit, negative zero and all."""
    return list(left) == list(right) and all(left[n].tobytes() == right[n].tobytes() for n in left)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open no file more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
