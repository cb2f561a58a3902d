"""First factors that need more than the base and a seed: sample texts (EVA, CorDA), or the error of 4 bits (LoftQ).

They are found once, where the template is made. Sites are sent them, as ordinary LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedcompress.adapters.base_model import BaseModel, load_tokenizer
from fedcompress.config.objective import Objective
from fedcompress.errors import ConfigError, MissingPackageError

LENGTH, ROWS = 256, 4  # tokens of a text that are read, texts at a time


def batches_of(base: BaseModel, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Texts as inputs of the model."""
    tokenizer = load_tokenizer(base.path)
    out = []
    for at in range(0, len(texts), ROWS):
        part = list(texts[at : at + ROWS])
        made = tokenizer(part, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
        out.append({k: made[k] for k in ("input_ids", "attention_mask")})
    return out


def _run(module: Any, batch: Mapping[str, Any]) -> None:
    inputs = dict(batch)
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    module(**inputs)


def targets_of(base: BaseModel, objective: Objective, config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Names of the modules that a config means, and the shapes of their weights; found without reading weights.

    Raises:
        ConfigError: it means none.
    """
    from fedcompress.adapters.attach import attach_adapter
    from fedcompress.adapters.base_model import build_base

    same = ("task_type", "target_modules", "exclude_modules", "modules_to_save")
    plain = {"peft_type": "LORA", "r": 1, **{k: config[k] for k in same if k in config}}
    model = attach_adapter(build_base(base, objective, meta=True), plain).model
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    return {n: (m.out_features, m.in_features) for n, m in layers.items()}


def eva(
    module: Any, config: Mapping[str, Any], batches: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
    """Principal directions of what each module reads (Paischer et al. 2024, arXiv:2410.07170).

    Returns:
        A LoRA config, with the ranks that modules get, and the first A by name.
    """
    from peft import EvaConfig, get_peft_model, get_peft_model_state_dict, initialize_lora_eva_weights

    from fedcompress.adapters.attach import build_peft_config

    made = build_peft_config({**config, "init_lora_weights": "eva"})
    try:
        made.eva_config = EvaConfig(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError("adapter.eva", dict(options), f"is refused by PEFT: {error}") from error
    model = get_peft_model(module.eval(), made)
    try:
        initialize_lora_eva_weights(
            model, list(batches), forward_fn=_run, show_progress_bar=False, gather_distributed_inputs=False
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError("texts", f"{len(batches)} batches", f"do not give directions: {error}") from error
    found = model.peft_config["default"]
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    patterns = {"rank_pattern": found.rank_pattern, "alpha_pattern": found.alpha_pattern}
    resolved = {**config, **patterns, "target_modules": sorted(found.target_modules)}
    return resolved, {n: t.detach().clone() for n, t in saved.items() if ".lora_A." in n}


def corda(attached: Any, batches: Sequence[Mapping[str, Any]], method: str) -> None:
    """Set the factors to a part of each weight W, and take it out (Yang et al. 2024, arXiv:2406.05223).

    With C the covariance of what the module reads and U S V the singular value decomposition of W C, the part is
    r terms of U S V C^-1: the least of them, so that knowledge is preserved (kpm), or the first (ipm).

    Raises:
        ConfigError: there is no such method.
    """
    import torch

    from fedcompress.adapters.attach import initial_product

    if method not in ("kpm", "ipm"):
        raise ConfigError("adapter.corda.corda_method", method, "must be kpm or ipm")
    layers = _factored(attached)
    with torch.no_grad():
        sums = _covariances(attached.model, layers, batches)
        for layer in layers:
            weight = layer.get_base_layer().weight
            plain = (weight.T if getattr(layer, "fan_in_fan_out", False) else weight).double()
            total = sums.pop(layer).double()
            total += 0.01 * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype, device=total.device)
            left, values, right = torch.linalg.svd(plain @ total, full_matrices=False)
            rank = layer.r["default"]
            part = slice(-rank, None) if method == "kpm" else slice(rank)
            root = (values[part] / layer.scaling["default"]).sqrt()
            a = root[:, None] * torch.linalg.solve(total, right[part].T).T
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(left[:, part] * root)
            weight -= initial_product(layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight)


def _factored(attached: Any) -> list[Any]:
    return [m for m in attached.model.modules() if hasattr(m, "lora_A") and "default" in m.lora_A]


def _covariances(model: Any, layers: Sequence[Any], batches: Sequence[Mapping[str, Any]]) -> dict[Any, Any]:
    """Mean outer product of what each layer reads of tokens that are not padding."""
    sums: dict[Any, Any] = {}
    kept: list[Any] = [None]

    def read(layer: Any, inputs: tuple[Any, ...]) -> None:
        mask, rows = kept[0], inputs[0].float()
        rows = rows[mask] if rows.shape[:2] == mask.shape else rows.reshape(-1, rows.shape[-1])
        sums[layer] = sums.get(layer, 0) + rows.T @ rows / len(rows)

    hooks = [layer.register_forward_pre_hook(read) for layer in layers]
    model.eval()
    for batch in batches:
        kept[0] = batch["attention_mask"].bool()
        _run(model, batch)
    for hook in hooks:
        hook.remove()
    return sums


def loftq(attached: Any) -> None:
    """Set the factors to the best of their rank for what NF4 loses of each weight (Li et al. 2023, arXiv:2310.08659).

    One step of the alternation: sites quantise the base itself, so that there is nothing to alternate with.
    """
    import torch

    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    except ImportError as error:
        raise MissingPackageError(f"package {error.name}: is absent: pip install bitsandbytes") from error
    with torch.no_grad():
        for layer in _factored(attached):
            weight = layer.get_base_layer().weight.detach().float().contiguous()
            small, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
            lost = weight - dequantize_4bit(small, state).reshape(weight.shape).float()
            left, values, right = torch.linalg.svd(lost.double(), full_matrices=False)
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            rank = min(a.shape[0], values.numel())
            root = (values[:rank] / layer.scaling["default"]).sqrt()
            a.zero_()
            b.zero_()
            a[:rank] = (root[:, None] * right[:rank]).to(a.dtype)
            b[:, :rank] = (left[:, :rank] * root).to(b.dtype)
