"""The optimizers in Hugging Face's Trainer: schedule, accumulation, checkpoint and resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from fedcompress.optim import build_optimizer
from fedcompress.optim.engine.averaging import evaluation_weights

LLAMA = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)


def rows() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(40, (64, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": t, "labels": t} for t in tokens]


def trainer(folder: Path, call: str, steps: int, **more: Any) -> Trainer:
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
        **more,
    )
    optimizers = (build_optimizer(model, call, lr=1e-2), None)
    return Trainer(model=model, args=arguments, train_dataset=rows(), eval_dataset=rows()[:8], optimizers=optimizers)


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


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_evaluates_and_saves_the_averages_of_schedule_free(tmp_path: Path) -> None:
    evaluated = {"eval_strategy": "steps", "eval_steps": 4}
    through = trainer(tmp_path / "through", "schedule-free", 8, **evaluated)
    through.train()
    model = through.model
    ended = {n: w.detach().clone() for n, w in model.named_parameters()}
    averages = dict(model.named_parameters())
    optimizer = through.optimizer.optimizer
    assert optimizer.is_averaged
    expected = {s.name: x.view_as(averages[s.name]) for s, x in evaluation_weights(optimizer)}
    saved = LlamaForCausalLM.from_pretrained(tmp_path / "through" / "checkpoint-8")
    assert all(torch.equal(w, expected[n]) for n, w in saved.named_parameters())
    at_average = through.evaluate()["eval_loss"]
    assert [log["eval_loss"] for log in through.state.log_history if "eval_loss" in log][-2:] == [at_average] * 2
    optimizer.train()
    ids = torch.stack([row["input_ids"] for row in rows()[:8]])
    model.eval()
    assert model(input_ids=ids, labels=ids).loss.item() != pytest.approx(at_average, abs=1e-6)
    optimizer.eval()
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(at_average, abs=1e-5)
    again = trainer(tmp_path / "again", "schedule-free", 8, **evaluated)
    again.train(resume_from_checkpoint=str(tmp_path / "through" / "checkpoint-4"))
    assert all(torch.equal(w, ended[n]) for n, w in again.model.named_parameters())
