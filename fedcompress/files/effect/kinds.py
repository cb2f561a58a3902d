"""The one literal table of kinds of adapter tensors says how each is coded without a base, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedcompress.adapters.scaling import has_plain_start

FACTOR = "factor"  # part of a product, which is judged
VALUE = "value"  # 0 means no change, and an error of the value is one of the change
ONE = "one"  # 1 means no change
EXACT = "exact"  # no lossy code could be judged without the base


@dataclass(frozen=True, kw_only=True)
class KindRow:
    """A row describes one kind of tensor.

    Args:
        pattern: regular expression of how the name ends; what is before it, with ``adapter``, names the module.
        coded: ``FACTOR``, ``VALUE``, ``ONE`` or ``EXACT``.
        why: the reason, for a user.
        product: of a factor: the name of its product in ``PRODUCTS``.
        role: of a factor: which one of the product it is.
    """

    pattern: str
    coded: str
    why: str
    product: str = ""
    role: str = ""


def _factor(product: str, role: str, pattern: str) -> KindRow:
    return KindRow(pattern=pattern, coded=FACTOR, why=PRODUCTS[product], product=product, role=role)


PRODUCTS: dict[str, str] = {
    "lora": "the change is scaling times B A, with AdaLoRA scaling times B E A",
    "hira": "the change is the base's weight times B A, entry by entry",
    "loha": "the change is (w1_a w1_b) times (w2_a w2_b), entry by entry",
    "lokr": "the change is the Kronecker product of w1 and w2, each of them a matrix or a product a b",
    "vera": "the change is linear in each of two vectors that scale random projections",
}
# Name of an adapter, which PEFT leaves out of its files and other programs do not.
ADAPTER = r"(?P<adapter>\.(?!weight$|bias$)[^.]+)?"
KINDS: tuple[KindRow, ...] = (
    KindRow(pattern=rf"\.lora_B{ADAPTER}\.bias", coded=VALUE, why="added to what B A gives"),
    _factor("lora", "a", rf"\.lora_(?:embedding_)?A{ADAPTER}(?:\.weight)?"),
    _factor("lora", "b", rf"\.lora_(?:embedding_)?B{ADAPTER}(?:\.weight)?"),
    _factor("lora", "e", rf"\.lora_E{ADAPTER}"),
    # As other trainers write LoRA.
    _factor("lora", "a", r"\.(?:lora_down|lora\.down|lora_linear_layer\.down)\.weight"),
    _factor("lora", "b", r"\.(?:lora_up|lora\.up|lora_linear_layer\.up)\.weight"),
    _factor("lora", "alpha", r"\.alpha"),
    _factor("hira", "a", r"\.hira_(?:embedding_)?A"),
    _factor("hira", "b", r"\.hira_(?:embedding_)?B"),
    _factor("loha", "w1_a", r"\.hada_w1_a"),
    _factor("loha", "w1_b", r"\.hada_w1_b"),
    _factor("loha", "w2_a", r"\.hada_w2_a"),
    _factor("loha", "w2_b", r"\.hada_w2_b"),
    _factor("loha", "core", r"\.hada_t[12]"),
    _factor("lokr", "w1", r"\.lokr_w1"),
    _factor("lokr", "w1_a", r"\.lokr_w1_a"),
    _factor("lokr", "w1_b", r"\.lokr_w1_b"),
    _factor("lokr", "w2", r"\.lokr_w2"),
    _factor("lokr", "w2_a", r"\.lokr_w2_a"),
    _factor("lokr", "w2_b", r"\.lokr_w2_b"),
    _factor("lokr", "core", r"\.lokr_t2"),
    _factor("vera", "b", r"\.vera_lambda_b"),
    _factor("vera", "d", r"\.vera_lambda_d"),
    KindRow(pattern=r"\.miss_block", coded=VALUE, why="the change is linear in it"),
    KindRow(pattern=r"\.(?:fourierft|waveft)_spectrum", coded=VALUE, why="the change is linear in it"),
    KindRow(pattern=r"\.c3a_kernel", coded=VALUE, why="the change is linear in it"),
    KindRow(pattern=r"\.shira_weight", coded=VALUE, why="the change is linear in it"),
    KindRow(pattern=r"\.beft_bias", coded=VALUE, why="the change is linear in it"),
    KindRow(pattern=r"\.tinylora_v(?:\..+)?", coded=VALUE, why="the change is linear in it"),
    KindRow(pattern=r"\.oft_(?:embedding_)?R(?:\.weight)?", coded=VALUE, why="generators of rotations, 0 is none"),
    KindRow(pattern=r"\.boft_R", coded=VALUE, why="generators of rotations, 0 is none"),
    KindRow(pattern=r"\.road_theta", coded=VALUE, why="angles of rotations, 0 is none"),
    KindRow(pattern=r"(?:^|\.)prompt_embeddings", coded=VALUE, why="read by the model as it is"),
    KindRow(pattern=r"\.ia3_l", coded=ONE, why="a scale of activations"),
    KindRow(pattern=r"\.boft_s", coded=ONE, why="a scale of rows"),
    KindRow(pattern=r"\.road_alpha", coded=ONE, why="a scale of rotated pairs"),
    KindRow(pattern=r"\.lora_magnitude_vector(?:\.weight)?", coded=EXACT, why="magnitudes of the base's weights"),
    KindRow(pattern=r"\.ln_tuning_layers\..+", coded=EXACT, why="weights of norms, copies of the base's"),
    KindRow(pattern=r"\.trainable_tokens_delta", coded=EXACT, why="whole rows of an embedding"),
    KindRow(pattern=r"\.hra_u", coded=EXACT, why="directions of reflections, of which 0 is none"),
    KindRow(pattern=r"\.(?:vera|pvera|randlora)_[AB]", coded=EXACT, why="projections that were drawn, not trained"),
)
OTHER_ADAPTER = KindRow(pattern="", coded=EXACT, why="of a type whose change needs the base to be judged")
WHOLE_COPY = KindRow(pattern="", coded=EXACT, why="whole copies: their change needs the base to be judged")
UNPAIRED = "factors that do not multiply, whose partner is missing, or of experts whose ranks a pattern sets"
# PEFT types with names of the table that mean other things there.
UNJUDGED_TYPES: dict[str, str] = {
    "MULTITASK_PROMPT_TUNING": "prompts that are products",
    "RANDLORA": "products of drawn projections and two scales",
}
# Settings of LoRA with which B A is not the change -> why.
UNJUDGED_SETTINGS: dict[str, str] = {
    "kasa_config": "factors with singular values of the base between them",
    "monteclora_config": "factors that are random",
    "use_bdlora": "factors in blocks",
}
OTHER_START = "factors that start from weights of the base, and are judged from there"


def find_unjudged(config: Mapping[str, Any]) -> str:
    """Return why the products of an adapter with this config cannot be judged; empty if they can."""
    kind = str(config.get("peft_type"))
    if kind in UNJUDGED_TYPES:
        return UNJUDGED_TYPES[kind]
    if kind != "LORA":
        return ""
    if not has_plain_start(config):
        return OTHER_START
    return next((why for key, why in UNJUDGED_SETTINGS.items() if config.get(key)), "")
