"""The one literal table of PEFT types: which can be merged without the base model, and how."""

from __future__ import annotations

from dataclasses import dataclass

LORA, ENTRIES, REFUSED = "lora", "entries", "refused"
CONVERT = "convert it to LoRA first (peft.convert_to_lora)"


@dataclass(frozen=True, kw_only=True)
class TypeRow:
    """One PEFT type.

    ``merge`` is ``lora`` (by the forms), ``entries`` (the weighted mean of parameters is the mean of
    the changes of the model) or ``refused``. Tensors whose name matches ``frozen`` must be equal at all sites.
    """

    merge: str
    why: str
    frozen: str = ""


def _mean(why: str, frozen: str = "") -> TypeRow:
    return TypeRow(merge=ENTRIES, why=why, frozen=frozen)


def _not(why: str) -> TypeRow:
    return TypeRow(merge=REFUSED, why=why)


_SHARED_START = "has no change of weights to average: embeddings of different runs do not correspond"
_ACTIVATIONS = "is a network of its own, not a change of weights: it cannot be averaged without the base model"

TYPES: dict[str, TypeRow] = {
    "ADALORA": _not(f"has a rank of its own for each module and site, and E between the factors: {CONVERT}"),
    "ADAMSS": _not("has subspaces of its own for each site"),
    "ADAPTION_PROMPT": _not(_SHARED_START),
    "BEFT": _mean("the change is linear in the parameters"),
    "BOFT": _not("is a product of rotations: the mean of its factors is not the mean of the changes"),
    "C3A": _mean("circulant kernels: the change is linear in them"),
    "CARTRIDGE": _not(_SHARED_START),
    "CPT": _not(_SHARED_START),
    "DEFT": _not("is a product of its factors: the mean of them is not the mean of the changes"),
    "DELORA": _not(f"is normalised, which is not linear: {CONVERT}"),
    "FOURIERFT": _mean("coefficients at equal places: the change is linear in them", frozen="indices"),
    "FROD": _mean("coefficients of one basis: the change is linear in them", frozen=r"frod_(V|s_indices|s_size)"),
    "GLORA": _not("is a product of its factors: the mean of them is not the mean of the changes"),
    "GRALORA": _not(f"is a product of its factors: {CONVERT}"),
    "HIRA": _not("is a Hadamard product with the base: the mean of its factors is not the mean of the changes"),
    "HRA": _not("is a product of reflections: the mean of its factors is not the mean of the changes"),
    "IA3": _mean("scales of activations: the adapted weights are linear in them"),
    "LILY": _not("is a product of shared factors: the mean of them is not the mean of the changes"),
    "LN_TUNING": _mean("weights of norms, saved whole"),
    "LOHA": _not(f"is a product of its factors: {CONVERT}"),
    "LOKR": _not(f"is a product of its factors: {CONVERT}"),
    "LORA": TypeRow(merge=LORA, why="by the form: exact, flora, fedex or a rule"),
    "MISS": _mean("the change is linear in the parameters (also of Bone) with equal rank and base"),
    "MULTITASK_PROMPT_TUNING": _not(_SHARED_START),
    "OFT": _not("is a rotation: the mean of its generators is not the mean of the changes"),
    "OSF": _not("is a product of its factors: the mean of them is not the mean of the changes"),
    "PEANUT": _not("is not linear in its parameters"),
    "POLY": _not("has a router: it cannot be averaged without the base model"),
    "PREFIX_TUNING": _not(_SHARED_START),
    "PROMPT_TUNING": _not(_SHARED_START),
    "PSOFT": _not(f"is a rotation in a subspace: {CONVERT}"),
    "PVERA": _not("is a product of its two vectors, and random"),
    "P_TUNING": _not(_SHARED_START),
    "RANDLORA": _not(f"is a product of its scales: {CONVERT}"),
    "ROAD": _not("is a rotation: the mean of its parameters is not the mean of the changes"),
    "SHADOW": _not(_ACTIVATIONS),
    "SHIRA": _mean("values at equal places: the change is linear in them", frozen="indices"),
    "SUPERTUNING": _mean("values at equal places; its LoRA while A is frozen", frozen="indices|lora_A"),
    "TINYLORA": _mean("coefficients of one basis: linear", frozen=r"tinylora_(?!v)"),
    "TRAINABLE_TOKENS": _mean("rows of an embedding, the same at all sites", frozen="indices"),
    "UNILORA": _not(f"is a product of parts of one vector: {CONVERT}"),
    "VBLORA": _not(f"picks from a bank of vectors by logits: {CONVERT}"),
    "VERA": _mean("linear in lambda_b while lambda_d is frozen", frozen=r"vera_(lambda_d|A|B)(\.|$)"),
    "WAVEFT": _mean("coefficients at equal places: the change is linear in them", frozen="indices"),
    "XLORA": _not("has a router: it cannot be averaged without the base model"),
}
