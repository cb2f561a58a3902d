"""The optimizers in Hugging Face's Trainer: schedule, accumulation, checkpoint and resume."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from fedcompress.optim import build_optimizer

LLAMA = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)


def rows() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(40, (64, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": t, "labels": t} for t in tokens]


def trainer(folder: Path, call: str, steps: int) -> Trainer:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LLAMA)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        warmup_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(
        model=model, args=arguments, train_dataset=rows(), optimizers=(build_optimizer(model, call, lr=1e-2), None)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", ["frugal(update_gap=3,state=8bit)", "galore(rank=4,update_gap=3)"])
def test_a_trainer_that_resumes_ends_as_one_that_did_not_stop(call: str, tmp_path: Path) -> None:
    through = trainer(tmp_path / "through", call, 8)
    through.train()
    again = trainer(tmp_path / "again", call, 8)
    again.train(resume_from_checkpoint=str(tmp_path / "through" / "checkpoint-4"))
    ours, theirs = (dict(t.model.named_parameters()) for t in (again, through))
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert again.optimizer.optimizer.calls["model.layers.0.mlp.up_proj.weight"] == 4
