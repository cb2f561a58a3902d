"""The one literal table of PEFT types says which can be merged without the base model, and how."""

from __future__ import annotations

from dataclasses import dataclass

LORA = "lora"  # merged by a form or a rule
ENTRIES = "entries"  # merged by the weighted mean of the parameters, which is the mean of the changes of the model
REFUSED = "refused"
CONVERT = "convert it to LoRA first (peft.convert_to_lora)"


@dataclass(frozen=True, kw_only=True)
class TypeRow:
    """A row describes one PEFT type."""

    merge: str  # LORA, ENTRIES or REFUSED
    why: str  # why it is merged like that, or why it is refused
    frozen: str = ""  # regular expression: tensors whose name matches must be equal at all sites


def _average(why: str, frozen: str = "") -> TypeRow:
    return TypeRow(merge=ENTRIES, why=why, frozen=frozen)


def _refuse(why: str) -> TypeRow:
    return TypeRow(merge=REFUSED, why=why)


_SHARED_START = "has no change of weights to average: embeddings of different runs do not correspond"
_ACTIVATIONS = "is a network of its own, not a change of weights: it cannot be averaged without the base model"

TYPES: dict[str, TypeRow] = {
    "ADALORA": _refuse(f"has a rank of its own for each module and site, and E between the factors: {CONVERT}"),
    "ADAMSS": _refuse("has subspaces of its own for each site"),
    "ADAPTION_PROMPT": _refuse(_SHARED_START),
    "BEFT": _average("the change is linear in the parameters"),
    "BOFT": _refuse("is a product of rotations: the mean of its factors is not the mean of the changes"),
    "C3A": _average("circulant kernels: the change is linear in them"),
    "CARTRIDGE": _refuse(_SHARED_START),
    "CPT": _refuse(_SHARED_START),
    "DEFT": _refuse("is a product of its factors: the mean of them is not the mean of the changes"),
    "DELORA": _refuse(f"is normalised, which is not linear: {CONVERT}"),
    "FOURIERFT": _average("coefficients at equal places: the change is linear in them", frozen="indices"),
    "FROD": _average("coefficients of one basis: the change is linear in them", frozen=r"frod_(V|s_indices|s_size)"),
    "GLORA": _refuse("is a product of its factors: the mean of them is not the mean of the changes"),
    "GRALORA": _refuse(f"is a product of its factors: {CONVERT}"),
    "HIRA": _refuse("is a Hadamard product with the base: the mean of its factors is not the mean of the changes"),
    "HRA": _refuse("is a product of reflections: the mean of its factors is not the mean of the changes"),
    "IA3": _average("scales of activations: the adapted weights are linear in them"),
    "LILY": _refuse("is a product of shared factors: the mean of them is not the mean of the changes"),
    "LN_TUNING": _average("weights of norms, saved whole"),
    "LOHA": _refuse(f"is a product of its factors: {CONVERT}"),
    "LOKR": _refuse(f"is a product of its factors: {CONVERT}"),
    "LORA": TypeRow(merge=LORA, why="by the form: exact, flora, fedex or a rule"),
    "MISS": _average("the change is linear in the parameters (also of Bone) with equal rank and base"),
    "MULTITASK_PROMPT_TUNING": _refuse(_SHARED_START),
    "OFT": _refuse("is a rotation: the mean of its generators is not the mean of the changes"),
    "OSF": _refuse("is a product of its factors: the mean of them is not the mean of the changes"),
    "PEANUT": _refuse("is not linear in its parameters"),
    "POLY": _refuse("has a router: it cannot be averaged without the base model"),
    "PREFIX_TUNING": _refuse(_SHARED_START),
    "PROMPT_TUNING": _refuse(_SHARED_START),
    "PSOFT": _refuse(f"is a rotation in a subspace: {CONVERT}"),
    "PVERA": _refuse("is a product of its two vectors, and random"),
    "P_TUNING": _refuse(_SHARED_START),
    "RANDLORA": _refuse(f"is a product of its scales: {CONVERT}"),
    "ROAD": _refuse("is a rotation: the mean of its parameters is not the mean of the changes"),
    "SHADOW": _refuse(_ACTIVATIONS),
    "SHIRA": _average("values at equal places: the change is linear in them", frozen="indices"),
    "SUPERTUNING": _average("values at equal places; its LoRA while A is frozen", frozen="indices|lora_A"),
    "TINYLORA": _average("coefficients of one basis: linear", frozen=r"tinylora_(?!v)"),
    "TRAINABLE_TOKENS": _average("rows of an embedding, the same at all sites", frozen="indices"),
    "UNILORA": _refuse(f"is a product of parts of one vector: {CONVERT}"),
    "VBLORA": _refuse(f"picks from a bank of vectors by logits: {CONVERT}"),
    "VERA": _average("linear in lambda_b while lambda_d is frozen", frozen=r"vera_(lambda_d|A|B)(\.|$)"),
    "WAVEFT": _average("coefficients at equal places: the change is linear in them", frozen="indices"),
    "XLORA": _refuse("has a router: it cannot be averaged without the base model"),
}
