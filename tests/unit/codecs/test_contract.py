"""Every row of CODECS: round trip, law, determinism, no mutation, on every kind of tensor."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedcompress.codecs import CODECS, CodecSpec, decode_sections, encode_sections, sample_spec
from fedcompress.codecs.chain import SelectThenQuantize
from fedcompress.errors import ConfigError, LayoutError, NonFiniteError
from fedcompress.types import Layout, Tensors, TensorSpec
from tests.support import equal, lora_layout, normal
from tests.unit.codecs import codec_reference as reference

SAMPLES = {name: sample_spec(name) for name in CODECS}
SPECS = {
    **SAMPLES,
    **{f"topk|{name}": f"topk(density=0.3)|{name}" for name, row in CODECS.items() if row.kind == "quantize"},
    "topk-global": "topk(density=0.1,scope=global)|ternary",
    "int-blocks": "int(bits=5,block=7)",
}


def strange() -> tuple[Layout, Tensors]:
    generator = np.random.default_rng(7)
    huge = np.float32(1e38) * generator.uniform(-3, 3, 40).astype(np.float32)
    values = {
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(-1.5, np.float32),
        "one": np.array([2.0], np.float32),
        "zeros": np.zeros((5, 4), np.float32),
        "constant": np.full((6, 6), 0.1, np.float32),
        "negative-zero": np.array([-0.0, 0.0, 1.0], np.float32),
        "denormal": (generator.standard_normal(30) * 1e-41).astype(np.float32),
        "huge": huge,
        "largest": np.array([np.finfo(np.float32).max, -1e38, 0], np.float32),
        "mixed": (generator.standard_normal((9, 9)) * 10.0 ** generator.integers(-20, 20, (9, 9))).astype(np.float32),
        "plain": generator.standard_normal((64, 8)).astype(np.float32),
    }
    groups = ("lora_a", "lora_b", "head", "other")
    specs = [TensorSpec(name=n, shape=v.shape, group=groups[i % 4]) for i, (n, v) in enumerate(values.items())]
    return Layout(tuple(specs)), values


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_round_trip(spec: str) -> None:
    layout, values = strange()
    before = {n: v.copy() for n, v in values.items()}
    codec = CodecSpec.parse(spec)
    sections = encode_sections(codec, layout, values)
    assert sections == encode_sections(codec, layout, values)
    assert equal(values, before), "encode changed its input"
    decoded = decode_sections(codec, layout, sections)
    layout.check(decoded, what="decoded")
    assert encode_sections(codec, layout, decoded) == encode_sections(codec, layout, decoded)
    assert CodecSpec.parse(str(codec)) == codec


def relative(x: Tensors, y: Tensors, names: list[str]) -> tuple[float, float]:
    """Squared error and squared norm of some tensors together, in units of their largest magnitude."""
    top = max((float(np.abs(x[n].astype(np.float64)).max(initial=0)) for n in names), default=0.0) or 1.0
    pairs = [(x[n].astype(np.float64) / top, y[n].astype(np.float64) / top) for n in names]
    return sum(float(np.square(p - q).sum()) for p, q in pairs), sum(float(np.square(p).sum()) for p, _ in pairs)


def int_bound(x: np.ndarray, code: object) -> np.ndarray:
    step = 2.02 * np.abs(x).max(initial=0) / (2**code.bits - 2)
    return step * (0.5 if code.rounding == "nearest" else 1) + 1e-40


# Largest error of each entry, from the tensor and the quantizer, for rows whose law is one.
ENTRY_LAWS = {
    "none": lambda x, q: np.zeros(x.shape),
    # half a step of the last of 8 bits; clamped at the end of the range, denormals by their step
    "bf16": lambda x, q: np.maximum(np.abs(x) * 2.0**-8, 2.0**-133),
    "int": int_bound,
    "nf4": lambda x, q: 0.16 * np.abs(x).max(initial=0) + 1e-40,
    "qsgd": lambda x, q: 1.01 * np.abs(x).max(initial=0) / q.levels + 1e-40,
    "power": lambda x, q: 0.52 * q.root * np.abs(x).max(initial=0) / q.top + 1e-40,
}
# Rows that promise only a squared error no larger than the squared norm, of all tensors of a clause together.
ENERGY_LAWS = ("transform", "svd", "powersgd", "dct", "seeds", "twobit", "ternary")


@pytest.mark.parametrize("name", SAMPLES)
def test_law(name: str) -> None:
    """What ``law`` says, on each clause of the row."""
    layout, values = strange()
    codec = CodecSpec.parse(SAMPLES[name])
    decoded = decode_sections(codec, layout, encode_sections(codec, layout, values))
    for clause, members in zip(codec.clauses, codec.assign(layout), strict=True):
        names = [m.name for m in members]
        select, quantize = None, clause.code
        if isinstance(clause.code, SelectThenQuantize):
            select, quantize = clause.code.select, clause.code.quantize
        if select is not None:
            chosen = select.select([values[n].ravel() for n in names], [values[n].shape for n in names], 0)
            for n, places in zip(names, chosen, strict=True):
                assert np.count_nonzero(decoded[n]) <= places.size
        elif quantize.name in ENTRY_LAWS:
            for n in names:
                x, y = values[n].astype(np.float64), decoded[n].astype(np.float64)
                assert (np.abs(x - y) <= ENTRY_LAWS[quantize.name](x, quantize)).all(), n
        if quantize.name in ENERGY_LAWS and getattr(select, "gain", 1) == 1:
            error, norm = relative(values, decoded, names)
            assert error <= 1.02 * norm


@pytest.mark.parametrize("spec", ["qsgd(levels=2)", "int(bits=3,rounding=stochastic)", "random(density=0.25)|none"])
def test_unbiased_codes(spec: str) -> None:
    """The mean over seeds approaches the values, within five deviations of the mean."""
    layout = Layout((TensorSpec(name="w", shape=(6, 50)),))
    values, codec = normal(layout, 0), CodecSpec.parse(spec)
    draws = 400
    sums = squares = np.zeros((6, 50))
    for seed in range(draws):
        decoded = decode_sections(codec, layout, encode_sections(codec, layout, values, seed=seed))["w"].astype(float)
        sums, squares = sums + decoded, squares + decoded**2
    mean = sums / draws
    deviation = np.sqrt(np.maximum(squares / draws - mean**2, 1e-12) / draws)
    rare = 10 * np.abs(values["w"]).max() / draws  # what happens once or twice has no measured deviation
    assert (np.abs(mean - values["w"]) <= 5 * deviation + rare).all()


@pytest.mark.parametrize("spec", ["qsgd", "random(density=0.5)|none", "seeds(count=8)", "powersgd(rank=2)"])
def test_seeds_decide_the_bytes(spec: str) -> None:
    layout = lora_layout()
    values, codec = normal(layout, 0), CodecSpec.parse(spec)
    one, two, again = (encode_sections(codec, layout, values, seed=s) for s in (1, 2, 1))
    assert one == again != two


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 1.0])
def test_ternary_equals_the_reference(density: float) -> None:
    layout, values = strange()
    codec = CodecSpec.parse(f"topk(density={density})|ternary")
    decoded = decode_sections(codec, layout, encode_sections(codec, layout, values))
    for name, value in values.items():
        flat = [float(v) for v in value.ravel()]
        expected = np.array(reference.ternary(flat, reference.topk(flat, density)), np.float32)
        assert decoded[name].ravel().tobytes() == expected.tobytes(), name


def test_bf16_equals_the_reference() -> None:
    layout, values = strange()
    codec = CodecSpec.parse("bf16")
    decoded = decode_sections(codec, layout, encode_sections(codec, layout, values))
    for name, value in values.items():
        expected = np.array([reference.bf16_nearest(float(v)) for v in value.ravel()], np.float32)
        assert decoded[name].ravel().tobytes() == expected.tobytes(), name


@pytest.mark.parametrize(("bits", "block"), [(2, 0), (3, 7), (4, 0), (5, 1), (8, 0), (8, 64)])
def test_int_equals_the_reference(bits: int, block: int) -> None:
    layout, values = strange()
    codec = CodecSpec.parse(f"int(bits={bits},block={block})")
    decoded = decode_sections(codec, layout, encode_sections(codec, layout, values))
    for name, value in values.items():
        expected = np.array(reference.integer([float(v) for v in value.ravel()], bits, block), np.float32)
        assert (decoded[name].ravel() == expected).all(), name


@pytest.mark.parametrize("quantizer", [name for name, row in CODECS.items() if row.kind == "quantize"])
def test_a_clause_without_tensors_has_a_section(quantizer: str) -> None:
    layout = Layout((TensorSpec(name="w", shape=(3,), group="other"),))
    values = {"w": np.ones(3, np.float32)}
    for clause in (quantizer, f"topk(density=0.5)|{quantizer}", f"topk(density=0.5,scope=global)|{quantizer}"):
        codec = CodecSpec.parse(f"head: {clause}; none")
        assert equal(decode_sections(codec, layout, encode_sections(codec, layout, values)), values)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.5])
def test_ternary_reaches_the_entropy_bound(density: float) -> None:
    """H(p) + p bits an entry, within 1 %."""
    size = 100_000
    layout = Layout((TensorSpec(name="w", shape=(size,)),))
    section = encode_sections(CodecSpec.parse(f"topk(density={density})|ternary"), layout, normal(layout, 0))
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    bound = size * (entropy + density) / 8
    assert bound < sum(map(len, section)) <= 1.01 * bound + 64


def test_scale_minimises_the_squared_error() -> None:
    layout = Layout((TensorSpec(name="w", shape=(500,)),))
    values = normal(layout, 3)
    codec = CodecSpec.parse("topk(density=0.2)|ternary")
    decoded = decode_sections(codec, layout, encode_sections(codec, layout, values))["w"]
    error = float(np.square(values["w"] - decoded).sum())
    for factor in (0.97, 1.03):
        assert error < float(np.square(values["w"] - factor * decoded).sum())


def test_groups_get_their_own_clause() -> None:
    layout = lora_layout()
    values = normal(layout, 1)
    codec = CodecSpec.parse("lora: topk(density=0.1)|ternary; head: none")
    decoded = decode_sections(codec, layout, encode_sections(codec, layout, values))
    assert (decoded["head.weight"] == values["head.weight"]).all()
    assert np.count_nonzero(decoded["m0.lora_A.weight"]) == math.ceil(0.1 * 96)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("topk(density=0.1)", ["[selection |] quantization"]),
        ("transform", ["budget, lambda", "needs one"]),
        ("transform(budget=64Ki)", ["transform.budget", "64Ki", "bits a parameter"]),
        ("transform(budget=-1)", ["transform.budget", "above 0"]),
        ("transform(lambda=0.1,budget=1)", ["needs one"]),
        ("transform(lambda=inf)", ["'inf'", "number"]),
        ("topk(density=0.1)|transform(budget=1)", ["[selection |] quantization"]),
        ("threshold()|none", ["needs at"]),
        ("nm(n=4,m=4)|none", ["codec.nm.n", "from 1 to 3"]),
        ("chunk(k=65,of=64)|none", ["codec.chunk.k", "the chunk"]),
        ("ternary|topk(density=0.1)", ["[selection |] quantization"]),
        ("topk()|ternary", ["needs density"]),
        ("topk(density=0)|ternary", ["codec.topk.density", "above 0"]),
        ("topk(density=1.5)|ternary", ["1.5", "at most 1"]),
        ("topk(density=x)|ternary", ["'x'", "number"]),
        ("topk(density=0.1,density=0.2)|ternary", ["once each"]),
        ("topk(dens=0.1)|ternary", ["dens=0.1", "density"]),
        ("topk(density=0.1,scope=row)|ternary", ["row", "global"]),
        ("int(bits=1)", ["bits", "from 2 to 8"]),
        ("int(bits=4,block=-1)", ["block", ">= 0"]),
        ("ternary(scale=std)", ["scale", "mse"]),
        ("nonsense", ["nonsense", "ternary"]),
        ("tail: none", ["'tail'", "lora_a"]),
        ("head: none; head: bf16", ["head", "more than one"]),
        ("none; bf16", ["at most one"]),
        ("head: lora-ternary", ["stand alone"]),
        ("", ["name"]),
        ("top k", ["name(key=value"]),
    ],
)
def test_bad_specs_name_field_value_and_rule(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        CodecSpec.parse(text)
    for word in words:
        assert word in str(caught.value)


def test_a_group_without_a_clause_is_an_error() -> None:
    layout = lora_layout()
    with pytest.raises(ConfigError, match=r"group 'head' \(head.bias\)"):
        encode_sections(CodecSpec.parse("lora: none"), layout, normal(layout, 0))


def test_non_finite_input_is_refused_by_name() -> None:
    layout = lora_layout()
    for bad in (np.nan, np.inf, -np.inf):
        values = normal(layout, 0)
        values["m1.lora_B.weight"][3, 1] = bad
        with pytest.raises(NonFiniteError, match=r"m1\.lora_B\.weight"):
            encode_sections(CodecSpec.parse("none"), layout, values)


def test_wrong_tensors_are_refused() -> None:
    layout = lora_layout()
    values = normal(layout, 0)
    for change in ({"head.bias": np.zeros(4, np.float32)}, {"head.bias": np.zeros(3, np.float64)}):
        with pytest.raises(LayoutError, match=r"head\.bias"):
            encode_sections(CodecSpec.parse("none"), layout, {**values, **change})
    del values["head.bias"]
    with pytest.raises(LayoutError, match=r"missing \['head.bias'\]"):
        encode_sections(CodecSpec.parse("none"), layout, values)
