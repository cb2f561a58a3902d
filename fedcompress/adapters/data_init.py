"""Finds initial LoRA factors that need more than a seed: sample texts (EVA, CorDA), or the error of 4 bits (LoftQ).

They are found once, where the template is made, and sent to the sites as those of an ordinary LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedcompress.adapters.base_model import BaseModel, load_tokenizer
from fedcompress.config.objective import Objective
from fedcompress.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fedcompress.adapters.attach import AdaptedModel

LENGTH = 256  # tokens of a text that are read; the rest is cut off
ROWS = 4  # texts in a batch


def tokenize_texts(base: BaseModel, texts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Tokenize texts into batches: ``input_ids`` and ``attention_mask``, int64, shape (up to ``ROWS``, tokens)."""
    tokenizer = load_tokenizer(base.path)
    batches = []
    for start in range(0, len(texts), ROWS):
        rows = list(texts[start : start + ROWS])
        encoding = tokenizer(rows, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
        batches.append({key: encoding[key] for key in ("input_ids", "attention_mask")})
    return batches


def _run_forward(module: Module, batch: Mapping[str, Tensor]) -> None:
    """Run a model on a batch for what its hooks see; a decoder reads the input, too."""
    inputs = dict(batch)
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    module(**inputs)


def find_target_shapes(base: BaseModel, objective: Objective, config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Find the modules that a config targets, without reading weights.

    Args:
        base: the base model.
        objective: what is learnt; it decides the model's class.
        config: the JSON of an adapter_config.json of any type.

    Returns:
        The shape (out features, in features) of each module's weight, by the module's name in the base.

    Raises:
        ConfigError: the config targets no module.
    """
    from fedcompress.adapters.attach import attach_adapter
    from fedcompress.adapters.base_model import build_base

    target_keys = ("task_type", "target_modules", "exclude_modules", "modules_to_save")
    lora_config = {"peft_type": "LORA", "r": 1, **{k: config[k] for k in target_keys if k in config}}
    model = attach_adapter(build_base(base, objective, meta=True), lora_config).model
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    return {n: (m.out_features, m.in_features) for n, m in layers.items()}


def find_eva_factors(
    module: Module, config: Mapping[str, Any], batches: Sequence[Mapping[str, Tensor]], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Find the principal directions of what each module reads (EVA, Paischer et al. 2024, arXiv:2410.07170).

    Args:
        module: the base; PEFT replaces its modules in place.
        config: the JSON of a LoRA's adapter_config.json.
        batches: from ``tokenize_texts``.
        options: fields of PEFT's ``EvaConfig``, as rho and tau.

    Returns:
        The config with the ranks that modules get, and the initial A of each, shape (rank, in features), by the name
        in PEFT's state dict.

    Raises:
        ConfigError: PEFT refuses an option, or finds no directions in the texts.
    """
    from peft import EvaConfig, get_peft_model, get_peft_model_state_dict, initialize_lora_eva_weights

    from fedcompress.adapters.attach import build_peft_config

    peft_config = build_peft_config({**config, "init_lora_weights": "eva"})
    try:
        peft_config.eva_config = EvaConfig(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError("adapter.eva", dict(options), f"is refused by PEFT: {error}") from error
    model = get_peft_model(module.eval(), peft_config)
    try:
        initialize_lora_eva_weights(
            model, list(batches), forward_fn=_run_forward, show_progress_bar=False, gather_distributed_inputs=False
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError("texts", f"{len(batches)} batches", f"do not give directions: {error}") from error
    resolved = model.peft_config["default"]
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    patterns = {"rank_pattern": resolved.rank_pattern, "alpha_pattern": resolved.alpha_pattern}
    resolved_config = {**config, **patterns, "target_modules": sorted(resolved.target_modules)}
    return resolved_config, {n: t.detach().clone() for n, t in saved.items() if ".lora_A." in n}


def set_corda_factors(attached: AdaptedModel, batches: Sequence[Mapping[str, Tensor]], method: str) -> None:
    """Set the factors to a part of each weight W, and subtract that part from it (CorDA, Yang et al. 2024).

    With C the covariance of what the module reads and U S V the singular value decomposition of W C, the part is
    r terms of U S V C^-1: the least of them, so that knowledge is preserved (kpm), or the first (ipm); see
    arXiv:2406.05223, section 3. C is damped by a hundredth of the mean of its diagonal, and all is computed in float64.

    Args:
        attached: a model with LoRA; factors and base weights are changed in place.
        batches: from ``tokenize_texts``.
        method: ``kpm`` or ``ipm``.

    Raises:
        ConfigError: there is no such method.
    """
    import torch

    from fedcompress.adapters.attach import initial_product

    if method not in ("kpm", "ipm"):
        raise ConfigError("adapter.corda.corda_method", method, "must be kpm or ipm")
    layers = _find_lora_layers(attached)
    with torch.no_grad():
        covariances = _measure_covariances(attached.model, layers, batches)
        for layer in layers:
            weight = layer.get_base_layer().weight
            oriented = (weight.T if getattr(layer, "fan_in_fan_out", False) else weight).double()  # (out, in)
            covariance = covariances.pop(layer).double()  # (in, in)
            damping = 0.01 * covariance.diagonal().mean()
            covariance += damping * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
            left, values, right = torch.linalg.svd(oriented @ covariance, full_matrices=False)
            rank = layer.r["default"]
            terms = slice(-rank, None) if method == "kpm" else slice(rank)
            root = (values[terms] / layer.scaling["default"]).sqrt()
            a = root[:, None] * torch.linalg.solve(covariance, right[terms].T).T
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(left[:, terms] * root)
            weight -= initial_product(layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight)


def _find_lora_layers(attached: AdaptedModel) -> list[Module]:
    return [m for m in attached.model.modules() if hasattr(m, "lora_A") and "default" in m.lora_A]


def _measure_covariances(
    model: Module, layers: Sequence[Module], batches: Sequence[Mapping[str, Tensor]]
) -> dict[Module, Tensor]:
    """Measure the mean outer product of what each layer reads of tokens that are not padding.

    Returns:
        Float32 of shape (in features, in features) by layer: the sum over batches of each batch's mean.
    """
    covariances: dict[Module, Tensor] = {}
    token_mask: Tensor | None = None  # (rows, tokens), of the batch that runs

    def accumulate(layer: Module, inputs: tuple[Tensor, ...]) -> None:
        assert token_mask is not None
        rows = inputs[0].float()
        has_tokens = rows.shape[:2] == token_mask.shape
        rows = rows[token_mask] if has_tokens else rows.reshape(-1, rows.shape[-1])
        covariances[layer] = covariances.get(layer, 0) + rows.T @ rows / len(rows)

    hooks = [layer.register_forward_pre_hook(accumulate) for layer in layers]
    model.eval()
    for batch in batches:
        token_mask = batch["attention_mask"].bool()
        _run_forward(model, batch)
    for hook in hooks:
        hook.remove()
    return covariances


def set_loftq_factors(attached: AdaptedModel) -> None:
    """Set the factors to the best ones of their rank for what NF4 loses of each weight (LoftQ, Li et al. 2023).

    One step of the alternation of arXiv:2310.08659, Algorithm 1, is made: sites quantise the base itself, and not
    the base minus the product, so that there is nothing to alternate with.

    Raises:
        MissingPackageError: bitsandbytes is absent.
    """
    import torch

    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    except ImportError as error:
        raise MissingPackageError(f"package {error.name}: is absent: pip install bitsandbytes") from error
    with torch.no_grad():
        for layer in _find_lora_layers(attached):
            weight = layer.get_base_layer().weight.detach().float().contiguous()
            codes, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
            residual = weight - dequantize_4bit(codes, state).reshape(weight.shape).float()
            left, values, right = torch.linalg.svd(residual.double(), full_matrices=False)
            a = layer.lora_A["default"].weight
            b = layer.lora_B["default"].weight
            rank = min(a.shape[0], values.numel())
            root = (values[:rank] / layer.scaling["default"]).sqrt()
            a.zero_()
            b.zero_()
            a[:rank] = (root[:, None] * right[:rank]).to(a.dtype)
            b[:, :rank] = (left[:, :rank] * root).to(b.dtype)
