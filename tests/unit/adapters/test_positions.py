"""The limit of tokens against what the model itself does with one token more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcompress.adapters import load_template
from fedcompress.adapters.positions import LEARNT, check_length, count_positions
from fedcompress.config.objective import CausalLM, Classification
from fedcompress.errors import ConfigError
from server.coordinator import Coordinator
from tests.unit.adapters import sites
from tests.unit.server.memory import run_config

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
ROWS = 12


def models() -> dict[str, Any]:
    """A tiny model of each kind, with a matrix of ``ROWS`` positions."""
    import transformers as t

    limit = {"max_position_embeddings": ROWS}
    own = {"vocab_size": 30, **limit}
    one = {"num_hidden_layers": 1, "num_attention_heads": 2}
    neo = {"num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]], "intermediate_size": 24}
    return {
        "bert": lambda: t.BertModel(t.BertConfig(**SIZES, **own)),
        "roberta": lambda: t.RobertaModel(t.RobertaConfig(**SIZES, **own, pad_token_id=1)),
        "xlm-roberta": lambda: t.XLMRobertaModel(t.XLMRobertaConfig(**SIZES, **own, pad_token_id=1)),
        "mpnet": lambda: t.MPNetModel(t.MPNetConfig(**SIZES, **own, pad_token_id=1)),
        "electra": lambda: t.ElectraModel(t.ElectraConfig(**SIZES, **own)),
        "albert": lambda: t.AlbertModel(t.AlbertConfig(**SIZES, **own)),
        "distilbert": lambda: t.DistilBertModel(
            t.DistilBertConfig(
                vocab_size=30, dim=16, hidden_dim=24, n_layers=1, n_heads=2, max_position_embeddings=ROWS
            )
        ),
        "camembert": lambda: t.CamembertModel(t.CamembertConfig(**SIZES, **own, pad_token_id=1)),
        "convbert": lambda: t.ConvBertModel(t.ConvBertConfig(**SIZES, **own, embedding_size=16)),
        "data2vec-text": lambda: t.Data2VecTextModel(t.Data2VecTextConfig(**SIZES, **own, pad_token_id=1)),
        "ernie": lambda: t.ErnieModel(t.ErnieConfig(**SIZES, **own)),
        "megatron-bert": lambda: t.MegatronBertModel(t.MegatronBertConfig(**SIZES, **own)),
        "mobilebert": lambda: t.MobileBertModel(
            t.MobileBertConfig(**SIZES, **own, embedding_size=16, true_hidden_size=16, intra_bottleneck_size=16)
        ),
        "openai-gpt": lambda: t.OpenAIGPTModel(
            t.OpenAIGPTConfig(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=ROWS)
        ),
        "squeezebert": lambda: t.SqueezeBertModel(t.SqueezeBertConfig(**SIZES, **own, embedding_size=16)),
        "splinter": lambda: t.SplinterModel(t.SplinterConfig(**SIZES, **own)),
        "biogpt": lambda: t.BioGptModel(t.BioGptConfig(**SIZES, **own)),
        "gpt_bigcode": lambda: t.GPTBigCodeModel(
            t.GPTBigCodeConfig(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=ROWS)
        ),
        "gpt2": lambda: t.GPT2Model(t.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=ROWS)),
        "gpt_neo": lambda: t.GPTNeoModel(t.GPTNeoConfig(**own, **neo, hidden_size=16)),
        "opt": lambda: t.OPTModel(t.OPTConfig(**own, **one, hidden_size=16, ffn_dim=24, word_embed_proj_dim=16)),
    }


@pytest.mark.parametrize("kind", sorted(models()))
def test_one_token_more_is_too_many(kind: str, tmp_path: Path) -> None:
    model = models()[kind]().eval()
    model.save_pretrained(tmp_path)
    positions = count_positions(tmp_path, {})
    ids = torch.randint(4, 28, (1, positions + 1))
    with torch.no_grad():
        model(ids[:, :-1])
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            model(ids)


def test_every_kind_of_the_table_is_tried() -> None:
    """But encoder-decoders, whose two sides are asked separately, and a twin of RoBERTa."""
    assert set(LEARNT) - set(models()) == {"bart", "mbart", "roberta-prelayernorm"}


def test_tokens_that_an_adapter_puts_before_a_text_take_positions(tmp_path: Path) -> None:
    import transformers as t

    base = tmp_path / "base"
    t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=sites.WORDS, n_embd=16, n_layer=1, n_head=2, n_positions=ROWS)
    ).save_pretrained(base)
    sites.tokenizer(base)
    run = sites.run_of(tmp_path / "run", base, "prompt-tuning(num_virtual_tokens=5)", CausalLM())
    assert run.template.positions == ROWS - 5
    model = run.site().model
    ids = torch.randint(4, 28, (1, ROWS - 4))
    with torch.no_grad():
        model(input_ids=ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1]))
        with pytest.raises((RuntimeError, IndexError)):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_rotary_positions_have_no_limit(tmp_path: Path) -> None:
    assert count_positions(sites.llama(tmp_path / "llama"), {}) == 0
    assert count_positions(sites.t5(tmp_path / "t5"), {}) == 0
    assert count_positions(tmp_path / "nowhere", {}) == 0
    check_length(1 << 20, 0, "max-length")


def test_a_run_whose_texts_may_be_too_long_is_refused_at_its_start(tmp_path: Path) -> None:
    import transformers as t

    base = tmp_path / "base"
    t.BertModel(t.BertConfig(**SIZES, vocab_size=sites.WORDS, max_position_embeddings=ROWS)).save_pretrained(base)
    sites.tokenizer(base)
    objective = Classification(labels=("a", "b"))
    sites.run_of(tmp_path / "initial", base, "lora(r=2,targets=query)", objective)
    assert load_template(tmp_path / "initial").positions == ROWS
    assert json.loads((tmp_path / "initial" / "fedcompress.json").read_text())["positions"] == ROWS
    transport: Any = None
    with pytest.raises(ConfigError, match=r"max-length: 13: must be at most 12, the positions that the base model has"):
        Coordinator(run_config(tmp_path, 1, max_length=ROWS + 1), transport, lambda event: None)
    Coordinator(run_config(tmp_path, 1, max_length=ROWS), transport, lambda event: None).ledger.close()
