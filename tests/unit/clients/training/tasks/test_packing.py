"""Packed examples: nothing is lost, and nothing crosses from one to the next."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from clients.site import Data
from clients.training.data.examples import load_examples, row_count
from clients.training.tasks import Example
from clients.training.tasks.base import IGNORED
from clients.training.tasks.classification import ClassificationTask
from clients.training.tasks.language import CausalTask
from clients.training.tasks.packing import PackedExamples, fill_blocks, join_examples, keeps_examples_apart
from fedcompress.config.objective import Classification
from fedcompress.errors import ConfigError

LENGTH = 32


class Plain:
    """A stand-in for a tokenizer: one token a letter, no chat template."""

    pad_token_id, eos_token_id, chat_template = 0, 1, None

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": [ord(c) % 60 + 4 for c in text]}


def data_of(**options: Any) -> Data:
    return Data(train="any:function", **options)


def task(*, packing: bool = True) -> CausalTask:
    return CausalTask(data_of(packing=packing), Plain(), LENGTH)


def llama(attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, attn_implementation=attention, **size)).eval()


def examples(count: int = 12) -> list[Example]:
    draw = random.Random(0)
    out = []
    for number in range(count):
        tokens = [draw.randrange(4, 64) for _ in range(draw.randrange(3, 15))]
        labels = [IGNORED] * 2 + tokens[2:]
        out.append(Example(f"rows.jsonl:{number + 1}", tokens, labels, len(tokens) - 2))
    out[0] = Example("rows.jsonl:1", out[0].tokens, list(out[0].tokens), len(out[0].tokens) - 1)  # no prompt
    return out


@settings(max_examples=80, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=60), most=st.integers(1, 32))
def test_each_example_is_in_one_block(lengths: list[int], most: int) -> None:
    blocks = fill_blocks(lengths, most)
    assert sorted(i for block in blocks for i in block) == list(range(len(lengths)))
    assert all(len(block) == 1 or sum(max(1, lengths[i]) for i in block) <= most for block in blocks)
    assert blocks == fill_blocks(lengths, most)


def test_blocks_are_full() -> None:
    draw = random.Random(1)
    lengths = [draw.randrange(1, 200) for _ in range(3000)]
    assert sum(lengths) / (len(fill_blocks(lengths, 1024)) * 1024) > 0.99


def test_joins_have_no_labels() -> None:
    whole = Example("a", [5, 6, 7], [5, 6, 7], 2)
    block = join_examples([whole, Example("b", [8, 9], [IGNORED, 9], 1), whole])
    assert block.tokens == [5, 6, 7, 8, 9, 5, 6, 7]
    assert block.labels == [IGNORED, 6, 7, IGNORED, 9, IGNORED, 6, 7]
    assert block.starts == (0, 3, 5)
    assert block.predictions == 5 == sum(label != IGNORED for label in block.labels[1:])
    assert block.where == "a and 2 more"
    batch = task().batch([block, join_examples([whole, whole]), whole])
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 0, 1, 0, 1, 2],
        [0, 1, 2, 0, 1, 2, 0, 1],
        [0, 1, 2, 0, 1, 2, 3, 4],
    ]
    assert "attention_mask" not in batch


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_loss_of_a_packed_batch_is_that_of_its_parts(attention: str) -> None:
    model, rows, packing = llama(attention), examples(), task()
    packed = PackedExamples(rows, LENGTH)
    assert packed.rows == 12
    assert len(packed) < 7
    whole = packing.measure(model, packing.batch(list(packed)))
    assert any(len(e.tokens) < LENGTH for e in packed), "one is padded"
    parts = [task(packing=False).measure(model, packing.batch([row])) for row in rows]
    assert whole.count == sum(p.count for p in parts) == sum(e.predictions for e in packed)
    mean = sum(float(p.loss.detach()) for p in parts) / whole.count
    assert float(whole.loss.detach()) / whole.count == pytest.approx(mean, abs=1e-5)
    assert float(whole.correct) == sum(float(p.correct) for p in parts)


def test_gradients_of_a_packed_batch_are_those_of_its_parts() -> None:
    rows, packing = examples(), task()
    found = []
    for batches in ([list(PackedExamples(rows, LENGTH))], [[row] for row in rows]):
        model = llama().train()
        for batch in batches:
            packing.measure(model, packing.batch(batch)).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (found[0] - found[1]).norm() < 1e-5 * found[1].norm()


class Leaking(torch.nn.Module):
    """A model that ignores positions, as those do that were written for one text a row."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, **_: Any) -> Any:
        return self.model(input_ids=input_ids)


def test_models_that_mix_examples_are_refused() -> None:
    model = llama().train()
    assert keeps_examples_apart(model)
    assert model.training
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    assert keeps_examples_apart(gpt2)
    assert keeps_examples_apart(llama().bfloat16())
    bloom = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    assert not keeps_examples_apart(bloom), "it has no positions; at random weights it hardly looks back"
    size = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}
    opt = OPTForCausalLM(OPTConfig(vocab_size=64, num_attention_heads=4, max_position_embeddings=64, **size))
    assert not keeps_examples_apart(opt)
    assert not keeps_examples_apart(Leaking(llama()))
    batch = task().batch(list(PackedExamples(examples(), LENGTH)))
    with pytest.raises(ConfigError, match=r"data.packing: true: must be false with this model or adapter"):
        task().measure(Leaking(llama()), batch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix"])
def test_adapters(kind: str) -> None:
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    kinds: dict[str, Any] = {
        "lora": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }
    assert keeps_examples_apart(get_peft_model(llama(), kinds[kind])) == (kind == "lora")


def test_only_training_rows_of_language_models_are_packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "ab", "completion": "cd", "text": "x", "label": "a"}\n' * 20)
    data = Data(train=str(path), heldout=str(path), packing=True)
    causal = CausalTask(data, Plain(), LENGTH)
    train, heldout = (load_examples(data, part, causal) for part in ("train", "heldout"))
    assert (len(train), row_count(train), len(heldout), row_count(heldout)) == (4, 20, 20, 20)
    assert train[:1] == [train[0]]
    with pytest.raises(ConfigError, match=r"data.packing: true: is for causal"):
        load_examples(data, "train", ClassificationTask(Classification(labels=("a", "b")), data, Plain(), 8))
