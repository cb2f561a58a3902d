"""Writes the model card and the labels beside what a run has learnt, so that it can be used without this package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedcompress.adapters.classifier import CODE, USAGE
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM

CARD = "README.md"
LABELS = "labels.json"  # of a classifier: its head, and class names in the order of the head's rows


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Says of a run what its card tells.

    Args:
        run: name of the run.
        version: number of the version that is written.
        sites: how many sites took part; 0: it is not told.
        codec: of the updates; empty: it is not told.
        rule: how they were merged; empty: it is not told.
        accuracy: on the held-out rows of the sites, pooled, from 0 to 1; None: nobody has measured this version.
        loss: there, in nats a prediction; None as for the accuracy.
    """

    run: str
    version: int
    sites: int = 0
    codec: str = ""
    rule: str = ""
    accuracy: float | None = None
    loss: float | None = None


_HEADER = """\
---
library_name: {library}
{base_line}tags: [federated, fedcompress]
---
# {form_title} of a federated run

{facts}

It loads with stock {loader}; fedcompress is not needed:

```python
{usage}```
"""
_POOLED = """
**`AutoModelForSequenceClassification` is not the way to load this head**: it has another one, finds none of these
tensors, and goes on with random weights. The head here is a linear layer on the mean of the token vectors, as the class
above has it. A run whose template was made with `--head stock` has the head of transformers.
"""
# How a language model is loaded with its adapter; ``{kind}`` is the class of transformers.
_LANGUAGE = """\
from peft import PeftModel
from transformers import {kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(BASE)
model = PeftModel.from_pretrained({kind}.from_pretrained(BASE), ADAPTER).eval()
"""
# How a classifier with the stock head of transformers is loaded.
_STOCK = """\
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=len(LABELS))
model = PeftModel.from_pretrained(base, ADAPTER).eval()
"""
_MODEL = """\
from transformers import {kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = {kind}.from_pretrained({folder}).eval()
"""
# How a classifier with the mean-pooled head is loaded from a model folder.
_POOLED_MODEL = f"""\
{CODE}

from safetensors.torch import load_file

model = Classifier(FOLDER, len(LABELS))
head = load_file(FOLDER + "/classifier.safetensors")
model.classifier.load_state_dict({{name.rpartition(".")[2]: value for name, value in head.items()}})
model.eval()
"""
# How a text gets its class; ``{logits}`` is what the logits are called in the model's answer.
_PREDICT = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({tokenizer})
batch = tokenizer(["a text"], truncation=True, return_tensors="pt")
logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]){logits}
print(LABELS[int(logits.argmax(1))])
"""


def format_usage(objective: Objective) -> str:
    """Format the Python code that loads an adapter with stock PEFT.

    The code needs ``BASE`` and ``ADAPTER``, two paths, and defines ``model``.
    """
    match objective:
        case Classification(head="mean-pool-linear"):
            return f"LABELS = {list(objective.labels)!r}\n\n{USAGE}"
        case Classification():
            return f"LABELS = {list(objective.labels)!r}\n\n{_STOCK}"
        case CausalLM():
            return _LANGUAGE.format(kind="AutoModelForCausalLM")
        case Seq2SeqLM():
            return _LANGUAGE.format(kind="AutoModelForSeq2SeqLM")


def format_model_usage(objective: Objective) -> str:
    """Format the Python code that loads a model folder with stock transformers.

    The code needs ``FOLDER``, a path, and defines ``model``.
    """
    match objective:
        case Classification(head="mean-pool-linear"):
            return f"LABELS = {list(objective.labels)!r}\n\n{_POOLED_MODEL}"
        case Classification():
            kind = "AutoModelForSequenceClassification"
            return f"LABELS = {list(objective.labels)!r}\n\n{_MODEL.format(kind=kind, folder='FOLDER')}"
        case CausalLM():
            return _MODEL.format(kind="AutoModelForCausalLM", folder="FOLDER")
        case Seq2SeqLM():
            return _MODEL.format(kind="AutoModelForSeq2SeqLM", folder="FOLDER")


def write_card(folder: Path, base: str, objective: Objective, facts: RunFacts, *, is_adapter: bool = True) -> None:
    """Write ``README.md`` into a folder that a run has exported, and ``labels.json`` beside it for a classifier.

    Args:
        folder: the exported adapter or model.
        base: of an adapter, the base model's folder or hub id, as it stands in the example.
        objective: what was learnt.
        facts: of the run.
        is_adapter: whether the folder is a PEFT folder; else it is a model's, with all weights.
    """
    pooled = isinstance(objective, Classification) and objective.head == "mean-pool-linear"
    paths = f'BASE = {base!r}\nADAPTER = "."\n' if is_adapter else 'FOLDER = "."\n'
    usage = paths + (format_usage(objective) if is_adapter else format_model_usage(objective))
    if isinstance(objective, Classification):
        tokenizer = "BASE" if is_adapter else "FOLDER"
        usage += _PREDICT.format(tokenizer=tokenizer, logits="" if pooled else ".logits")
    text = _HEADER.format(
        library="peft" if is_adapter else "transformers",
        base_line=f"base_model: {json.dumps(base)}\n" if is_adapter else "",
        form_title="Adapter" if is_adapter else "Model",
        facts=_format_facts(objective, facts),
        loader="PEFT" if is_adapter else "transformers",
        usage=usage,
    )
    if isinstance(objective, Classification):
        text += _POOLED if pooled else ""
        text += f"\nClasses, in the order of the logits: `{LABELS}`.\n"
        described = {"head": objective.head, "labels": list(objective.labels)}
        labels = json.dumps(described, ensure_ascii=False, indent=1)
        (folder / LABELS).write_text(labels + "\n", encoding="utf-8")
    (folder / CARD).write_text(text, encoding="utf-8")


def _format_facts(objective: Objective, facts: RunFacts) -> str:
    """Format what is known of the run as a sentence or two."""
    told = [f"Run `{facts.run}`, version {facts.version}", f"task `{objective.name}`"]
    told += [f"{facts.sites} site{'s' if facts.sites != 1 else ''}"] if facts.sites else []
    told += [f"codec `{facts.codec}`"] if facts.codec else []
    told += [f"merge rule `{facts.rule}`"] if facts.rule else []
    text = ", ".join(told) + "."
    if facts.accuracy is None or facts.loss is None:
        return text + " No site has measured this version."
    measured = (
        f" On the held-out rows of the sites: accuracy {facts.accuracy:.4f}, loss {facts.loss:.4f} nats a prediction."
    )
    return text + measured
