"""Logits are computed where there is a loss: the figures are those of all logits."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from clients.training.tasks.language import CausalTask, _can_choose_positions, _sums
from tests.unit.clients.training.tasks.test_packing import llama, task


def adapted(config: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(llama(), config)


def lora() -> Any:
    return adapted(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))


def prompt() -> Any:
    return adapted(PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))


def batch(made: CausalTask) -> dict[str, Any]:
    from clients.data_sources import Row

    draw = random.Random(0)

    def words(most: int) -> str:
        return "".join(draw.choice("abcdef") for _ in range(draw.randint(1, most)))

    rows = [Row(f"x:{n}", {"prompt": words(20), "completion": words(6)}) for n in range(6)]
    return made.batch([made.example(row) for row in rows])


def test_figures_and_gradients_are_those_of_all_logits() -> None:
    model, made = lora(), task(packing=False)
    given = batch(made)
    seen: list[int] = []
    model.get_base_model().lm_head.register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    found = made.measure(model, given)
    found.loss.backward()
    slopes = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    wanted = _sums(logits[:, :-1], given["labels"][:, 1:])
    wanted.loss.backward()
    assert seen[0] < seen[1] == given["input_ids"].shape[1], "fewer logits than tokens"
    assert (found.count, int(found.correct), int(found.exact)) == (wanted.count, int(wanted.correct), int(wanted.exact))
    torch.testing.assert_close(found.loss, wanted.loss)
    assert slopes
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(slopes[name], parameter.grad)


@pytest.mark.parametrize("kind", [prompt, llama])
def test_all_logits_where_places_would_be_others(kind: Any) -> None:
    """A trained prompt shifts them; a model without an adapter is not asked."""
    model, made = kind(), task(packing=False)
    assert not _can_choose_positions(model)
    found = made.measure(model, batch(made))
    assert torch.isfinite(found.loss)
