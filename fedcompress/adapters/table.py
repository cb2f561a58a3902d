"""Holds the one literal table of adapters, and of those that are refused, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# How updates of an adapter merge; ``AdapterRow`` explains each.
PRODUCT = "product"
LINEAR = "linear"
NEAR = "near"


@dataclass(frozen=True, kw_only=True)
class AdapterRow:
    """A row describes one kind of adapter: a PEFT type with some of its fields set.

    Args:
        peft: PEFT's name of the type; empty if the base's own weights are trained.
        merge: ``product``: LoRA factors, for rules that merge their products. ``linear``: the weights that result are
            linear in what is trained, so that the mean of updates is exact. ``near``: they are not, and the mean of
            updates from one start differs from the mean of the weights in the second order of the updates.
        paper: where the method is from.
        start: where the first state comes from. ``base``: nothing but the base is needed. ``seed``: it is made from
            the run's seed, without reading the base. ``template``: PEFT makes it once, and it is sent. ``texts``:
            it is made once from sample texts, and sent.
        quantization: with which sites must load the base; empty if it is theirs to choose.
        quantized: True if the adapter learns on a base of 4 or 8 bits as it does on others.
        defaults: fields of PEFT's config that this row sets; a user may set them otherwise.
        note: what a user should know.
    """

    peft: str
    merge: str
    paper: str
    start: str = "template"
    quantization: str = ""
    quantized: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


ADAPTERS: dict[str, AdapterRow] = {
    "lora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        quantized=True,
        start="seed",
        paper="Hu et al. 2021 (arXiv:2106.09685)",
    ),
    "rslora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        quantized=True,
        start="seed",
        defaults={"use_rslora": True},
        paper="Kalajdzievski 2023 (arXiv:2312.03732)",
    ),
    "ffa-lora": AdapterRow(
        peft="LORA",
        merge=LINEAR,
        quantized=True,
        defaults={"freeze": "lora_A"},
        note="A is made once and sent; only B is trained, so that any mean is exact",
        paper="Sun et al. 2024 (arXiv:2403.12313)",
    ),
    "dora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        quantized=True,
        defaults={"use_dora": True},
        note="directions as LoRA, magnitudes by their mean; the norm makes it near; not on 8 bits",
        paper="Liu et al. 2024 (arXiv:2402.09353)",
    ),
    "pissa": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        defaults={"init_lora_weights": "pissa"},
        note="the residual base is rebuilt from the first factors, which are sent; exported at twice the rank",
        paper="Meng et al. 2024 (arXiv:2404.02948)",
    ),
    "olora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        defaults={"init_lora_weights": "olora"},
        note="as pissa",
        paper="Buyukakyuz 2024 (arXiv:2406.01775)",
    ),
    "orthogonal-lora": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        quantized=True,
        defaults={"init_lora_weights": "orthogonal"},
        paper="PEFT, init_lora_weights",
    ),
    "mica": AdapterRow(
        peft="LORA",
        merge=LINEAR,
        quantized=True,
        defaults={"init_lora_weights": "mica", "freeze": "lora_B"},
        note="B is the last left singular vectors of the weight, made once and sent; only A is trained",
        paper="MiCA 2026 (arXiv:2604.01694)",
    ),
    "corda": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        start="texts",
        defaults={"init_lora_weights": "corda", "corda_method": "kpm"},
        note="as pissa, oriented by what modules read of sample texts; corda_method=kpm or ipm",
        paper="Yang et al. 2024 (arXiv:2406.05223)",
    ),
    "eva": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        quantized=True,
        start="texts",
        defaults={"init_lora_weights": "eva", "rho": 1.0},
        note="A is what modules read most of sample texts; rho above 1 gives modules ranks of their own, for all sites",
        paper="Paischer et al. 2024 (arXiv:2410.07170)",
    ),
    "loftq": AdapterRow(
        peft="LORA",
        merge=PRODUCT,
        quantized=True,
        quantization="4bit",
        defaults={"init_lora_weights": "loftq"},
        note="starts from what 4 bits lose of the base, so that all sites must load it in 4 bits; one step",
        paper="Li et al. 2023 (arXiv:2310.08659)",
    ),
    "adalora": AdapterRow(
        peft="ADALORA",
        merge=NEAR,
        quantized=True,
        defaults={"init_r": 8, "target_r": 8, "total_step": 1},
        note="singular values as a factor of their own; ranks stay as they are given, since sites would not agree",
        paper="Zhang et al. 2023 (arXiv:2303.10512)",
    ),
    "vera": AdapterRow(
        peft="VERA",
        merge=NEAR,
        quantized=True,
        defaults={"save_projection": False},
        note="exact with freeze=vera_lambda_d",
        paper="Kopiczko et al. 2023 (arXiv:2310.11454)",
    ),
    "randlora": AdapterRow(
        peft="RANDLORA",
        merge=NEAR,
        quantized=True,
        defaults={"save_projection": False},
        note="exact with freeze=randlora_gamma",
        paper="Albert et al. 2025 (arXiv:2502.00987)",
    ),
    "miss": AdapterRow(
        peft="MISS",
        merge=LINEAR,
        quantized=True,
        paper="Kang and Yin 2024 (arXiv:2409.15371)",
    ),
    "bone": AdapterRow(
        peft="MISS",
        merge=LINEAR,
        quantized=True,
        defaults={"init_weights": "bat"},
        paper="Kang and Yin 2024 (arXiv:2409.15371v1)",
    ),
    "ia3": AdapterRow(
        peft="IA3",
        merge=LINEAR,
        quantized=True,
        paper="Liu et al. 2022 (arXiv:2205.05638)",
    ),
    "loha": AdapterRow(
        peft="LOHA",
        merge=NEAR,
        paper="Hyeon-Woo et al. 2022 (arXiv:2108.06098)",
    ),
    "lokr": AdapterRow(
        peft="LOKR",
        merge=NEAR,
        note="also DiffuseKronA (arXiv:2402.17412)",
        paper="Yeh et al. 2023 (arXiv:2309.14859)",
    ),
    "fourierft": AdapterRow(
        peft="FOURIERFT",
        merge=LINEAR,
        quantized=True,
        note="places of the spectrum are drawn from random_loc_seed",
        paper="Gao et al. 2024 (arXiv:2405.03003)",
    ),
    "waveft": AdapterRow(
        peft="WAVEFT",
        merge=LINEAR,
        quantized=True,
        paper="Bilican et al. 2025 (arXiv:2505.12532)",
    ),
    "c3a": AdapterRow(
        peft="C3A",
        merge=LINEAR,
        quantized=True,
        note="block_size must divide the widths of the modules",
        paper="Chen et al. 2024 (arXiv:2407.19342)",
    ),
    "shira": AdapterRow(
        peft="SHIRA",
        merge=LINEAR,
        quantized=True,
        note="the mask is made once and sent",
        paper="Bhardwaj et al. 2024 (arXiv:2406.13175)",
    ),
    "mask": AdapterRow(
        peft="SHIRA",
        merge=LINEAR,
        defaults={"kind": "lift", "rank": 32},
        note="kind: lift, the largest weights of the best approximation of rank; sara, the smallest weights; random. "
        "density of all weights, or r as in shira; sites choose the same from the base, or are sent the mask",
        paper="LIFT, Liu et al. 2025 (arXiv:2506.00772); SaRA, Hu et al. 2024 (arXiv:2409.06633)",
    ),
    "supertuning": AdapterRow(
        peft="SUPERTUNING",
        merge=LINEAR,
        note="sparsity=0.99: the largest weights, the same at all sites since the base is",
        paper="Super-Tuning 2026 (arXiv:2607.09287)",
    ),
    "vb-lora": AdapterRow(
        peft="VBLORA",
        merge=NEAR,
        quantized=True,
        defaults={"freeze": "vblora_logits"},
        note="the bank is trained, and which vectors of it a module has stays as drawn: sites would choose others",
        paper="Li et al. 2024 (arXiv:2405.15179)",
    ),
    "uni-lora": AdapterRow(
        peft="UNILORA",
        merge=NEAR,
        paper="Li et al. 2025 (arXiv:2506.00799)",
    ),
    "oft": AdapterRow(
        peft="OFT",
        merge=NEAR,
        quantized=True,
        note="generators are averaged: what results is orthogonal",
        paper="Qiu et al. 2023 (arXiv:2306.07280)",
    ),
    "boft": AdapterRow(
        peft="BOFT",
        merge=NEAR,
        quantized=True,
        note="as oft",
        paper="Liu et al. 2023 (arXiv:2311.06243)",
    ),
    "road": AdapterRow(
        peft="ROAD",
        merge=NEAR,
        quantized=True,
        paper="Liao and Monz 2024 (arXiv:2409.00119)",
    ),
    "hra": AdapterRow(
        peft="HRA",
        merge=NEAR,
        paper="Yuan et al. 2024 (arXiv:2405.17484)",
    ),
    "hira": AdapterRow(
        peft="HIRA",
        merge=NEAR,
        quantized=True,
        note="the change is the base's weight times BA, entry by entry; HUT is near to it",
        paper="Huang et al. 2025, ICLR",
    ),
    "gralora": AdapterRow(
        peft="GRALORA",
        merge=NEAR,
        quantized=True,
        note="a grid of small LoRAs, merged by their means",
        paper="Jung et al. 2025 (arXiv:2505.20355)",
    ),
    "tinylora": AdapterRow(
        peft="TINYLORA",
        merge=LINEAR,
        note="singular vectors of the base are saved; u=r*r spans LoRA-XS (arXiv:2405.17604)",
        paper="Morris et al. 2026 (arXiv:2602.04118)",
    ),
    "glora": AdapterRow(
        peft="GLORA",
        merge=NEAR,
        paper="Chavan et al. 2023 (arXiv:2306.07967)",
    ),
    "peanut": AdapterRow(
        peft="PEANUT",
        merge=NEAR,
        paper="Zhong et al. 2024 (arXiv:2410.01870)",
    ),
    "pvera": AdapterRow(
        peft="PVERA",
        merge=NEAR,
        quantized=True,
        defaults={"save_projection": False},
        note="training samples, evaluation takes the mean",
        paper="PVeRA 2025 (arXiv:2512.07703)",
    ),
    "beft": AdapterRow(
        peft="BEFT",
        merge=LINEAR,
        quantized=True,
        note="biases, added where the base has none",
        paper="BEFT 2025 (arXiv:2509.15974)",
    ),
    "ln-tuning": AdapterRow(
        peft="LN_TUNING",
        merge=LINEAR,
        quantized=True,
        note="targets names the norms",
        paper="Zhao et al. 2023 (arXiv:2312.11420)",
    ),
    "trainable-tokens": AdapterRow(
        peft="TRAINABLE_TOKENS",
        merge=LINEAR,
        quantized=True,
        note="token_indices=1+2+3",
        paper="PEFT",
    ),
    "prompt-tuning": AdapterRow(
        peft="PROMPT_TUNING",
        merge=NEAR,
        quantized=True,
        defaults={"num_virtual_tokens": 20},
        note="all sites start from one prompt, else the mean would mean nothing",
        paper="Lester et al. 2021 (arXiv:2104.08691)",
    ),
    "prefix-tuning": AdapterRow(
        peft="PREFIX_TUNING",
        merge=NEAR,
        quantized=True,
        defaults={"num_virtual_tokens": 20},
        note="as prompt-tuning",
        paper="Li and Liang 2021 (arXiv:2101.00190)",
    ),
    "full": AdapterRow(
        peft="",
        merge=LINEAR,
        start="base",
        note="all weights, or those that targets names; the state is their difference from the base, and a model the "
        "export",
        paper="McMahan et al. 2017 (arXiv:1602.05629)",
    ),
    "layers": AdapterRow(
        peft="",
        merge=LINEAR,
        start="base",
        defaults={"k": 2},
        note="k layers drawn for each round, the same at all sites; always=embed_tokens names what is always trained",
        paper="LISA, Pan et al. 2024 (arXiv:2403.17919)",
    ),
    "subspace": AdapterRow(
        peft="",
        merge=LINEAR,
        start="base",
        defaults={"rank": 16, "basis": "random", "refresh": "round"},
        note="weights change within seeded bases, random or dct, others in each round; with the codec subspace of the "
        "same rank and basis only coefficients travel",
        paper="intrinsic dimension, Li et al. 2018 (arXiv:1804.08838); bases as in DCT-AdamW (arXiv:2505.17967)",
    ),
}
# Adapters that cannot be averaged -> the reason, and what to use instead.
REFUSED: dict[str, str] = {
    "p-tuning": "trains an encoder that PEFT does not save: use prompt-tuning",
    "delora": "divides by norms of what is trained, so that a mean means nothing: use lora",
    "kasa": "truncates the base's own singular values, and the base could not be rebuilt: use pissa",
    "xlora": "mixes adapters that are trained already",
    "psoft": "does not save the singular vectors of the base that it turns, and their signs differ between machines: "
    "use oft or tinylora",
    "adamss": "does not save the clusters of the base that it trains, and machines may find others: use shira",
    "frod": "does not save its left basis, and machines may find another: use tinylora",
    "osf": "sends matrices of full rank, and constants as large as the base: use mask",
    "lily": "routes between experts that sites would train for other inputs: use lora",
    "id3": "unmasks by gradients, step by step, which sites would not agree on: use mask, or the optimizer id3",
    "poly": "routes between adapters by tasks that sites do not share",
}
