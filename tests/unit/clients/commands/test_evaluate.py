"""``fedcompress evaluate --data`` against plain loops over stock PEFT models."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.commands.evaluate import Options, run
from fedcompress.adapters.card import RunFacts, write_card
from fedcompress.adapters.export import export_adapter
from fedcompress.config.objective import CausalLM, Classification
from fedcompress.errors import ConfigError, MismatchError
from tests.unit.adapters import sites
from tests.unit.adapters.sites import trained

NAMES = ("a", "b", "c")
ROWS = [(f"w{3 + i % 20} w{5 + i * 7 % 50} w{9 + i % 3}", NAMES[i * i % 3 if i % 5 else 2]) for i in range(40)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites.llama(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("utterance", "scenario"), *ROWS])
    return path


def measured(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    """Run the command; its standard output is one JSON document."""
    capsys.readouterr()
    assert run(Options(as_json=True, **{k: str(v) if isinstance(v, Path) else v for k, v in options.items()})) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def count_hits(model: Any, base: Path) -> list[bool]:
    """Whether each row gets its class, one row at a time."""
    from transformers import AutoTokenizer

    tokenizer, hits = AutoTokenizer.from_pretrained(base), []
    for text, label in ROWS:
        batch = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits = output if torch.is_tensor(output) else output.logits
        hits.append(NAMES[int(logits.argmax(1))] == label)
    return hits


@pytest.mark.parametrize("head", ["mean-pool-linear", "stock"])
def test_an_export_of_a_run_is_measured_with_its_own_labels(
    head: str, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = Classification(labels=NAMES, head=head)
    learnt = sites.run_of(tmp_path / "run", base, "lora(r=4)", objective)
    state = trained(learnt, 1)
    model = learnt.stock(tmp_path / "out", state)
    write_card(tmp_path / "out", str(base), objective, RunFacts(run="r", version=1))
    hits = count_hits(model, base)
    found = measured(capsys, folder=tmp_path / "out", data=rows, model=base, text="utterance", label="scenario")
    scores = found["scores"]["adapter"]
    assert found["rows"] == len(ROWS)
    assert scores["accuracy"] == sum(hits) / len(ROWS)
    for name, figures in scores["labels"].items():
        mine = [hit for hit, (_, label) in zip(hits, ROWS, strict=True) if label == name]
        assert figures == {"rows": len(mine), "accuracy": sum(mine) / len(mine)}
    wrong = Options(folder=str(tmp_path / "out"), data=str(rows), model=str(base), labels="c,b,a")
    with pytest.raises(ConfigError, match=r"--labels.*must be those of labels.json"):
        run(wrong)


def test_an_adapter_that_others_have_saved(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(3)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = get_peft_model(plain, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "foreign")
    options = {"folder": tmp_path / "foreign", "data": rows, "text": "utterance", "label": "scenario"}
    found = measured(capsys, **options, labels=",".join(NAMES))  # the base is the one that its config names
    assert found["scores"]["adapter"]["accuracy"] == sum(count_hits(model.eval(), base)) / len(ROWS)
    with pytest.raises(ConfigError, match="--labels: nothing: must name the classes"):
        run(Options(folder=str(tmp_path / "foreign"), data=str(rows)))
    config = json.loads((tmp_path / "foreign" / "adapter_config.json").read_text())
    (tmp_path / "foreign" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="--model: nothing: must name the base model"):
        run(Options(folder=str(tmp_path / "foreign"), data=str(rows), labels="a,b,c"))


def test_a_language_model_is_measured_with_and_without_its_adapter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt = sites.run_of(tmp_path / "run", base, "lora(r=4)", CausalLM())
    state = trained(learnt, 1)
    export_adapter(tmp_path / "out", learnt.template, state, learnt.constants)
    texts = [f"w{33 + i} w{49 + i} w{i + 30} w{2 * i + 31}" for i in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"prompt": text.partition(" ")[0], "completion": text.partition(" ")[2]}) for text in texts
        )
    )
    found = measured(capsys, folder=tmp_path / "out", data=path, model=base)["scores"]
    for name, folder in (("base", None), ("adapter", tmp_path / "out")):
        loss, count = mean_loss(base, folder, texts)
        assert found[name]["predictions"] == count
        assert found[name]["loss"] == pytest.approx(loss, rel=1e-5)


def mean_loss(base: Path, adapter: Path | None, texts: list[str]) -> tuple[float, int]:
    """Cross entropy of each token after the first, with the end of the text, one row at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count, count


def test_a_vocabulary_that_has_grown(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["zz", "yy"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        init_lora_weights=False,
    )
    tuned = get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "grown", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "grown")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "w5 ", "completion": f"zz w{i + 30} yy"}) for i in range(4)))
    found = measured(capsys, folder=tmp_path / "grown", data=path, model=base)["scores"]["adapter"]
    fresh = AutoModelForCausalLM.from_pretrained(base)
    fresh.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    oracle, losses = PeftModel.from_pretrained(fresh, tmp_path / "grown").eval(), []
    for i in range(4):
        ids = torch.tensor([[*tokenizer(f"w5 zz w{i + 30} yy")["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            losses.append(float(oracle(ids, labels=ids).loss))
    assert found["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_an_adapter_of_another_model_is_refused(base: Path, rows: Path, tmp_path: Path) -> None:
    objective = Classification(labels=NAMES, head="mean-pool-linear")
    learnt = sites.run_of(tmp_path / "run", base, "lora(r=4)", objective)
    export_adapter(tmp_path / "out", learnt.template, trained(learnt, 1), learnt.constants)
    described = {"head": "stock", "labels": list(NAMES)}  # whose tensors have other names
    (tmp_path / "out" / "labels.json").write_text(json.dumps(described))
    options = {"folder": str(tmp_path / "out"), "data": str(rows), "model": str(base)}
    with pytest.raises(ConfigError, match=r"--data: rows.csv:2: .*other names are told by --text and --label"):
        run(Options(**options))
    with pytest.raises(MismatchError, match="does not fit its base"):
        run(Options(**options, text="utterance", label="scenario"))
    # as people load an encoder's adapter on the class with a head: PEFT warns, and goes on with random weights
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    targets = {**config, "target_modules": ["q_proj"], "modules_to_save": None}
    (tmp_path / "out" / "adapter_config.json").write_text(json.dumps(targets))
    with pytest.raises(MismatchError, match="is of another model, or is incomplete"):
        run(Options(**options, text="utterance", label="scenario"))


def test_texts_that_are_longer_than_the_model_are_refused_before_it_is_loaded(rows: Path, tmp_path: Path) -> None:
    import transformers as t

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = t.BertConfig(**size, vocab_size=sites.WORDS, max_position_embeddings=12, num_labels=3)
    t.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    sites.tokenizer(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"--max-length: 13: must be at most 12, the positions"):
        run(Options(folder=str(tmp_path / "bert"), data=str(rows), labels="a,b,c", max_length=13))
