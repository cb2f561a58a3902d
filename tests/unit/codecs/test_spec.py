"""Spec strings: canonical text, presets inside clauses, cost of parsing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcompress.codecs import CODECS, CodecSpec
from fedcompress.errors import ConfigError

SELECT = st.builds("topk(density={},scope={})".format, st.floats(1e-300, 1.0), st.sampled_from(["tensor", "global"]))
QUANTIZE = st.sampled_from(["ternary", "ternary(scale=mse)", "bf16", "none"]) | st.builds(
    "int(bits={},block={})".format, st.integers(2, 8), st.integers(0, 1 << 40)
)
CHAIN = QUANTIZE | st.builds("{} | {}".format, SELECT, QUANTIZE)
GROUPS = st.sampled_from(["", "lora: ", "lora_b,lora_a : ", " lora_a: "])


@given(first=CHAIN, groups=GROUPS, head=CHAIN)
def test_the_text_is_canonical(first: str, groups: str, head: str) -> None:
    codec = CodecSpec.parse(f"{groups}{first};head:{head}")
    assert CodecSpec.parse(str(codec)) == codec
    assert str(CodecSpec.parse(str(codec))) == str(codec)
    assert len(str(codec)) <= 1024, "fits in the header"


@pytest.mark.parametrize("name", [n for n, row in CODECS.items() if row.kind == "preset"])
def test_a_preset_is_a_name_for_its_spec(name: str) -> None:
    assert CodecSpec.parse(f" {name} ") == CodecSpec.parse(CODECS[name].spec)
    if ";" not in CODECS[name].spec:
        assert str(CodecSpec.parse(f"head: {name}")) == f"head: {CodecSpec.parse(name)}"


def test_defaults_are_left_out() -> None:
    text = "lora: topk(scope=tensor, density=5e-2) | ternary( scale = mse ); head:int(bits=8,block=0)"
    assert str(CodecSpec.parse(text)) == "lora_a,lora_b: topk(density=0.05)|ternary; head: int"


@pytest.mark.parametrize(
    "text", ["none;", "; none", "head: head: none", ": none", "lora, lora_a: none", "topk(a(b))|none"]
)
def test_crooked_text(text: str) -> None:
    with pytest.raises(ConfigError):
        CodecSpec.parse(text)


def test_parsing_takes_linear_time() -> None:
    """A backtracking expression would need minutes here."""
    for text in (" " * 400_000 + "!", "none" + " " * 400_000 + "!", "none(" * 100_000):
        with pytest.raises(ConfigError):
            CodecSpec.parse(text)
