"""The benchmarks of optimizers share a model and its gradients."""

from __future__ import annotations

from typing import Any

# The shapes of SmolLM2-135M.
WIDE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def wide_llama(layers: int) -> Any:
    """Build a model with random weights in the shapes of SmolLM2-135M, which has 30 layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**WIDE, num_hidden_layers=layers))


def set_random_gradients(model: Any) -> None:
    """Set a gradient for each parameter; columns of matrices that are no embedding fall in size."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator) * 1e-3
        if parameter.ndim == 2 and parameter.shape[0] < 10_000:
            gradient *= torch.arange(1, parameter.shape[1] + 1) ** -0.5
        parameter.grad = gradient
