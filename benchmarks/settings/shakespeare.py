"""Setting L: the 260k-parameter stories Llama, LoRA r=8 on all linear layers, Tiny Shakespeare by speaker."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.settings.base import Setting, data_folder
from fedcompress.adapters.attach import attach_adapter

SITES = 8
LENGTH = 96
EVAL_WINDOWS = 128
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def read_vocabulary(path: Path) -> dict[bytes, tuple[int, float]]:
    """Piece to (id, score), from llama2.c's tokenizer file."""
    data = path.read_bytes()
    at = 4
    out = {}
    while at < len(data):
        score, size = struct.unpack_from("<fi", data, at)
        at += 8 + size
        out.setdefault(data[at - size : at], (len(out), score))
    return out


def tokenize(text: str, vocabulary: dict[bytes, tuple[int, float]]) -> list[int]:
    """Greedy merging by score, word by word; unknown characters fall back to bytes."""

    @cache
    def word(piece: str) -> list[int]:
        parts = [c.encode() for c in piece]
        while True:
            scored = [(vocabulary[a + b][1], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in vocabulary]
            if not scored:
                break
            _, best = max(scored, key=lambda s: (s[0], -s[1]))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return [i for p in parts for i in ([vocabulary[p][0]] if p in vocabulary else [b + 3 for b in p])]

    pieces = text.replace("\n", " \n").split(" ")
    return [i for n, piece in enumerate(pieces) for i in word((" " if n else "") + piece)]


def load_stories(folder: Path) -> Any:
    """The checkpoint as a ``LlamaForCausalLM``; rotary halves are put in transformers' order."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    data = (folder / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack_from("<7i", data)
    flat, at = np.frombuffer(data, "<f4", offset=28), 0

    def take(*shape: int) -> Any:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return torch.from_numpy(flat[at - size : at].reshape(shape).copy())

    def halves(weight: Any, count: int) -> Any:
        size = weight.shape[0] // count
        return weight.view(count, size // 2, 2, dim).transpose(1, 2).reshape(weight.shape)

    width = dim // heads * kv_heads
    embed, norm1 = take(vocab, dim), take(layers, dim)
    q = take(layers, dim, dim)
    k = take(layers, width, dim)
    v = take(layers, width, dim)
    o = take(layers, dim, dim)
    norm2, gate = take(layers, dim), take(layers, hidden, dim)
    down = take(layers, dim, hidden)
    up = take(layers, hidden, dim)
    last = take(dim)
    state = {"model.embed_tokens.weight": embed, "model.norm.weight": last, "lm_head.weight": embed}
    per_layer = {
        "input_layernorm": norm1,
        "post_attention_layernorm": norm2,
        "self_attn.q_proj": [halves(w, heads) for w in q],
        "self_attn.k_proj": [halves(w, kv_heads) for w in k],
        "self_attn.v_proj": v,
        "self_attn.o_proj": o,
        "mlp.gate_proj": gate,
        "mlp.down_proj": down,
        "mlp.up_proj": up,
    }
    for name, weights in per_layer.items():
        state |= {f"model.layers.{i}.{name}.weight": weights[i] for i in range(layers)}
    config = LlamaConfig(
        **dict(vocab_size=vocab, hidden_size=dim, intermediate_size=hidden, max_position_embeddings=length),
        **dict(num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads),
        **dict(tie_word_embeddings=True, rms_norm_eps=1e-5),
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model


def _speakers(text: str) -> list[str]:
    """Text of the speakers with most to say."""
    said: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        speaker, colon, words = block.partition(":\n")
        if colon:
            said.setdefault(speaker, []).append(words.strip())
    texts = ["\n".join(turns) for turns in said.values()]
    return sorted(texts, key=lambda t: (-len(t), t))[:SITES]


def shakespeare(*, steps: int = 12) -> Setting:
    """Mean token loss on the last tenth of each speaker's text."""
    import torch

    folder = data_folder("stories260k")
    vocabulary = read_vocabulary(folder / "tok512.bin")
    text = (data_folder("tinyshakespeare") / "input.txt").read_text()
    tokens = [np.array(tokenize(t, vocabulary)) for t in _speakers(text)]
    cuts = [t.size * 9 // 10 for t in tokens]
    train = [t[:c] for t, c in zip(tokens, cuts, strict=True)]
    windows = [
        t[c:][: (t.size - c) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
        for t, c in zip(tokens, cuts, strict=True)
    ]
    held = torch.from_numpy(np.concatenate(windows)[:EVAL_WINDOWS])
    attached = attach_adapter(
        load_stories(folder),
        {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": TARGETS},
    )
    model = attached.model

    def window_loss(ids: Any) -> Any:
        logits = model(input_ids=ids[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def loss(site: int, picks: Sequence[int]) -> Any:
        ids = np.stack([train[site][i : i + LENGTH + 1] for i in picks])
        return window_loss(torch.from_numpy(ids))

    return Setting(
        name="L",
        model=attached,
        examples=[t.size - LENGTH - 1 for t in train],
        loss=loss,
        evaluate=lambda: float(window_loss(held)),
        steps=steps,
        batch=8,
        lr=3e-3,
        higher_is_better=False,
    )
