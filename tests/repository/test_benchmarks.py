"""Benchmarks start: what they import is there."""

import importlib
import pkgutil

import pytest

import benchmarks

NAMES = sorted(
    m.name
    for m in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    if not m.name.endswith(("__main__", "with_mergekit"))  # the second has an environment of its own
)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(name)
