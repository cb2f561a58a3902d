"""The same training by plain PEFT and Hugging Face's Trainer, in a process of its own.

python -m benchmarks.site.plain SITE.toml STEPS DTYPE: prints {"seconds": per step, "losses": [...]}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.site.place import BATCH, LENGTH


def main(argv: list[str]) -> None:
    """Entry point."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from clients.site import SiteConfig
    from clients.training.data.examples import load_examples
    from clients.training.tasks.language import CausalTask
    from fedcompress.adapters.base_model import load_tokenizer

    site = SiteConfig.load(Path(argv[0]))
    steps = int(argv[1])
    dtype = argv[2]
    torch.set_num_threads(site.engine.threads)
    tokenizer = load_tokenizer(site.model.path)
    task = CausalTask(site.data, tokenizer, LENGTH)
    model = AutoModelForCausalLM.from_pretrained(site.model.path, dtype=getattr(torch, dtype))
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **more: Any) -> None:
            ends.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(site.state_dir / "plain"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=10_000,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=load_examples(site.data, "train", task),
        data_collator=task.batch,
        callbacks=[Clock()],
    )
    trainer.train()
    print(json.dumps({"seconds": (ends[-1] - ends[0]) / (len(ends) - 1)}))


if __name__ == "__main__":
    main(sys.argv[1:])
