"""A hundred thousand spoiled payloads: each is refused with ``PayloadError``, or decodes to finite tensors."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs import CodecSpec, decode_sections, encode_sections
from fedcompress.errors import PayloadError
from fedcompress.types import Layout, TensorSpec
from tests.hostile.mutations import LAYOUT, payloads, refused_or_decoded, spoiled
from tests.support import normal

PAYLOADS = payloads()
EXAMPLES, EACH = 25, 120  # times the payloads: above 1e5


def test_there_are_enough() -> None:
    assert EXAMPLES * EACH * len(PAYLOADS) >= 100_000


@pytest.mark.parametrize("name", PAYLOADS)
def test_spoiled_payloads(name: str) -> None:
    spec, honest = PAYLOADS[name]
    assert refused_or_decoded(spec, honest)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(seed=st.integers(0, 1 << 32), clause=st.integers(0, len(honest) - 1))
    def run(seed: int, clause: int) -> None:
        for data in spoiled(honest[clause], np.random.default_rng(seed), EACH):
            refused_or_decoded(spec, (*honest[:clause], data, *honest[clause + 1 :]))

    run()


@pytest.mark.parametrize("name", PAYLOADS)
def test_another_layout_refuses_or_decodes(name: str) -> None:
    """Sizes come from the receiver's layout alone."""
    spec, honest = PAYLOADS[name]
    for shapes in (((4, 25), (20, 4), (3, 10), (7,)), ((1, 1), (1, 1), (1, 1), (1,)), ((0,), (0,), (0,), (0,))):
        specs = [TensorSpec(name=t.name, shape=s, group=t.group) for t, s in zip(LAYOUT.tensors, shapes, strict=True)]
        refused_or_decoded(spec, honest, Layout(tuple(specs)))


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_cut_is_refused(name: str) -> None:
    spec, honest = PAYLOADS[name]
    for clause, section in enumerate(honest):
        for at in range(len(section)):
            assert not refused_or_decoded(spec, (*honest[:clause], section[:at], *honest[clause + 1 :]))


@pytest.mark.parametrize("name", PAYLOADS)
def test_more_bytes_are_refused(name: str) -> None:
    spec, honest = PAYLOADS[name]
    for clause, section in enumerate(honest):
        assert not refused_or_decoded(spec, (*honest[:clause], section + b"\0", *honest[clause + 1 :]))


@pytest.mark.parametrize("name", PAYLOADS)
def test_memory_follows_the_layout(name: str) -> None:
    """No spoiled payload makes the decoder allocate beyond the layout and 4 MiB."""
    spec, honest = PAYLOADS[name]
    tracemalloc.start()
    for clause in range(len(honest)):
        for data in spoiled(honest[clause], np.random.default_rng(1), 100):
            refused_or_decoded(spec, (*honest[:clause], data, *honest[clause + 1 :]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_section_that_claims_everything() -> None:
    """Counts of 10^12 meet the receiver's sizes before anything is allocated."""
    huge = b"\x80\xa0\x94\xa5\x8d\x1d"  # 10^12 as a varint
    for text, body in {
        "topk(density=0.1)|ternary": b"\x02" + huge,
        "seeds(count=4)": b"\x00\x00" + huge,
        "transform(budget=1)": b"\x00\x00\x80\x3f\x00" + huge,
        "none": huge,
    }.items():
        tracemalloc.start()
        with pytest.raises(PayloadError):
            decode_sections(CodecSpec.parse(text), LAYOUT, (b"\x02" + body,))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


def test_decoding_ignores_threads() -> None:
    """The same bits at one and two threads of every library."""
    from threadpoolctl import threadpool_limits

    values = normal(LAYOUT, 9)
    for _, (spec, _) in PAYLOADS.items():
        sections = encode_sections(spec, LAYOUT, values)
        outs = []
        for threads in (1, 2):
            with threadpool_limits(limits=threads):
                outs.append({n: v.tobytes() for n, v in decode_sections(spec, LAYOUT, sections).items()})
        assert outs[0] == outs[1]


def test_decoding_keeps_nothing() -> None:
    """The process does not grow with what it has decoded or refused."""

    def decode_all(count: int) -> int:
        for spec, honest in PAYLOADS.values():
            for data in spoiled(honest[0], np.random.default_rng(2), count):
                refused_or_decoded(spec, (data, *honest[1:]))
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = decode_all(20)
    assert decode_all(200) - before < 3 << 20
