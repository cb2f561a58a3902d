"""Every row of CODECS: round trip, law, determinism, no mutation, on every kind of tensor."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedcompress.codecs import CODECS, CodecSpec, decode_sections, encode_sections
from fedcompress.errors import ConfigError, LayoutError, NonFiniteError
from fedcompress.types import Layout, Tensors, TensorSpec
from tests.support import equal, lora_layout, normal
from tests.unit.codecs import codec_reference as reference

DENSE = {name: row.spec or name for name, row in CODECS.items() if row.kind != "select"}
SPECS = {
    **DENSE,
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


@pytest.mark.parametrize("name", DENSE)
def test_law(name: str) -> None:
    """What ``law`` says, on each clause of the row."""
    layout, values = strange()
    codec = CodecSpec.parse(DENSE[name])
    decoded = decode_sections(codec, layout, encode_sections(codec, layout, values))
    for clause, members in zip(codec.clauses, codec.assign(layout), strict=True):
        for member in members:
            x, y = values[member.name].astype(np.float64), decoded[member.name].astype(np.float64)
            if clause.select is not None:
                kept = math.ceil(clause.select.density * x.size)  # type: ignore[attr-defined]
                assert np.count_nonzero(y) <= kept
            match clause.quantize.name:
                case "none":
                    assert x.tobytes() == y.tobytes()
                case "bf16":
                    # half a step of the last of 8 bits; clamped at the end of the range, denormals by their step
                    assert (np.abs(x - y) <= np.maximum(np.abs(x) * 2.0**-8, 2.0**-133)).all()
                case "int":
                    steps = 2**clause.quantize.bits - 2  # type: ignore[attr-defined]
                    bound = 1.01 * np.abs(x).max(initial=0) / steps
                    assert (np.abs(x - y) <= bound + 1e-40).all()
                case "ternary":
                    assert len(set(np.abs(y[y != 0]).tolist())) <= 1
                    assert (np.signbit(y)[y != 0] == np.signbit(x)[y != 0]).all()


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
