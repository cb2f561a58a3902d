"""A tiny Llama with a tokenizer of letters, and rows for it: as a site has them, on the disk."""

from __future__ import annotations

import json
import random
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz .?"


def write_tokenizer(folder: Path) -> None:
    """One token a letter, and a token that ends."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: i for i, letter in enumerate(["<end>", "<unk>", *LETTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", unk_token="<unk>", pad_token="<end>")
    tokenizer.save_pretrained(folder)


def write_llama(folder: Path, *, width: int = 32, layers: int = 2) -> Path:
    """Random weights, of a seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 2,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """Prompts whose answer is their first word, backwards."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        words = ["".join(draw.choices(LETTERS[:8], k=draw.randint(2, 6))) for _ in range(draw.randint(1, 3))]
        lines.append(json.dumps({"prompt": " ".join(words) + "?", "completion": words[0][::-1]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
