"""The range coder's classes: models of every kind in one stream, adaptive counts, garbage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs.entropy.range_coder import Adaptive, RangeReader, RangeWriter, bernoulli, categorical, weighted
from fedcompress.errors import PayloadError

PRIORS = st.lists(st.integers(1, 500), min_size=2, max_size=40).map(lambda p: np.array(p, np.int64))


@settings(max_examples=100, deadline=None)
@given(prior=PRIORS, sizes=st.lists(st.integers(0, 60), max_size=8), seed=st.integers(0, 9999))
def test_adaptive_models_round_trip_and_learn_alike(prior: np.ndarray, sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    share = generator.dirichlet(np.full(prior.size, 0.3))
    calls = [generator.choice(prior.size, n, p=share) for n in sizes]
    before = prior.copy()
    writer, model = RangeWriter(), Adaptive(prior)
    for symbols in calls:
        model.put(writer, symbols)
    reader, twin = RangeReader(writer.getvalue()), Adaptive(prior)
    for symbols in calls:
        assert (twin.get(reader, symbols.size) == symbols).all()
    reader.finish()
    assert (prior == before).all(), "the prior is not the model's own"
    assert (model._counts == twin._counts).all()
    assert (model._counts == prior + 32 * sum(np.bincount(c, minlength=prior.size) for c in calls)).all()


def test_counts_are_raised_after_a_call_not_within_it() -> None:
    symbols = np.array([1, 1, 0, 1])
    whole, single = RangeWriter(), RangeWriter()
    Adaptive(np.array([3, 1])).put(whole, symbols)
    single.put(symbols, categorical(np.array([3, 1])))
    assert whole.getvalue() == single.getvalue()


def test_adaptive_models_take_less_where_there_is_something_to_learn() -> None:
    generator = np.random.default_rng(0)
    symbols = generator.choice(16, 2000, p=[0.9, *[0.1 / 15] * 15])
    adaptive, fixed = RangeWriter(), RangeWriter()
    model = Adaptive(np.full(16, 4))
    for symbol in symbols:
        model.put(adaptive, np.array([symbol]))
        fixed.put(np.array([symbol]), categorical(np.full(16, 4)))
    assert len(adaptive.getvalue()) < 0.3 * len(fixed.getvalue())


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["bits", "family", "bernoulli", "categorical", "weighted", "nothing"]), max_size=8),
    seed=st.integers(0, 9999),
)
def test_models_may_be_mixed_in_a_stream(kinds: list[str], seed: int) -> None:
    def pieces() -> list[tuple[str, np.ndarray, object]]:
        generator = np.random.default_rng(seed)
        out: list[tuple[str, np.ndarray, object]] = []
        for kind in kinds:
            count = int(generator.integers(1, 50))
            match kind:
                case "bits":
                    odds = generator.uniform(1e-9, 1 - 1e-9, count)
                    out.append((kind, generator.random(count) < odds, odds))
                case "family":
                    out.append((kind, generator.integers(0, 5, count), generator.dirichlet(np.ones(5), count)))
                case "bernoulli":
                    out.append((kind, generator.integers(0, 2, count), bernoulli(1, 1 << 40)))
                case "categorical":
                    out.append((kind, generator.integers(0, 4, count), categorical(np.array([0, 1, 1 << 40, 3]))))
                case "weighted":
                    out.append((kind, generator.integers(0, 3, count), weighted(np.array([0.1, 0.7, 1e-12]))))
                case "nothing":
                    out.append(("bits", np.zeros(0, np.bool_), np.zeros(0)))
                    out.append(("family", np.zeros(0, np.int64), np.zeros((0, 5))))
        return out

    def put(writer: RangeWriter) -> bytes:
        for kind, symbols, model in pieces():
            match kind:
                case "bits":
                    writer.put_bits(symbols, model)
                case "family":
                    writer.put_each(symbols, model)
                case _:
                    writer.put(symbols, model)
        return writer.getvalue()

    data = put(RangeWriter())
    assert data == put(RangeWriter())
    assert len(data) % 4 == 0
    reader = RangeReader(data)
    for kind, symbols, model in pieces():
        match kind:
            case "bits":
                found: np.ndarray = reader.get_bits(model)
            case "family":
                found = reader.get_each(model)
            case _:
                found = reader.get(model, symbols.size)
        assert np.array_equal(found, symbols), kind
    reader.finish()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_words_are_whole(size: int) -> None:
    with pytest.raises(PayloadError, match="multiple of 4"):
        RangeReader(b"\1" * size)


def test_a_stream_that_goes_on() -> None:
    writer = RangeWriter()
    writer.put(np.array([1, 0, 1]), categorical(np.array([1, 1])))
    reader = RangeReader(writer.getvalue() + b"\0" * 8)
    reader.get(categorical(np.array([1, 1])), 3)
    with pytest.raises(PayloadError, match="goes on"):
        reader.finish()


@pytest.mark.parametrize("words", [1, 2, 3])
def test_a_stream_without_symbols_is_empty(words: int) -> None:
    assert RangeWriter().getvalue() == b""
    RangeReader(b"").finish()
    for fill in (b"\0", b"\xff"):
        reader = RangeReader(fill * 4 * words)
        reader.get(categorical(np.array([1, 1])), 0)
        reader.get_bits(np.zeros(0))
        with pytest.raises(PayloadError, match="goes on"):
            reader.finish()


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.sampled_from([0, 1, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF), max_size=8), prior=PRIORS)
def test_garbage_decodes_or_is_refused(words: list[int], prior: np.ndarray) -> None:
    data = np.array(words, "<u4").tobytes()
    for read in (
        lambda r: Adaptive(prior).get(r, 60),
        lambda r: r.get_bits(np.full(60, 0.001)),
        lambda r: r.get_each(np.tile(prior / prior.sum(), (60, 1))),
    ):
        reader = RangeReader(data)
        try:
            symbols = read(reader)
            reader.finish()
        except PayloadError:
            continue
        assert symbols.size == 60
        assert 0 <= int(symbols.min()) <= int(symbols.max()) < prior.size
