"""A model answers a few held-out questions, without an adapter and with it.

python -m fedcompress.demo.samples MODEL ADAPTER ROWS.jsonl OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COUNT = 3  # questions
NEW_TOKENS = 24  # tokens of an answer


def _answer(model: Any, tokenizer: Any, prompt: str) -> str:
    """Return the model's answer to a prompt, by greedy decoding."""
    import torch

    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    pad = tokenizer.eos_token_id
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=pad)
    answer: str = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip()


def main(argv: list[str]) -> None:
    """Write the answers to a JSON file: model, adapter, rows and output are the arguments."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter, rows, out = (Path(a) for a in argv)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter).eval()
    samples = []
    for line in rows.read_text(encoding="utf-8").splitlines()[:COUNT]:
        row = json.loads(line)
        with model.disable_adapter():
            before = _answer(model, tokenizer, row["prompt"])
        after = _answer(model, tokenizer, row["prompt"])
        samples.append({"prompt": row["prompt"], "wanted": row["completion"], "before": before, "after": after})
    part = out.with_name(f"{out.name}.part")
    part.write_text(json.dumps(samples, indent=2))
    part.rename(out)


if __name__ == "__main__":
    main(sys.argv[1:])
