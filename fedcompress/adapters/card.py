"""Writes the model card beside an exported adapter, which shows how to load it without this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.adapters.classifier import USAGE
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM

_CARD = """\
---
library_name: peft
tags: [federated, fedcompress]
---
# Adapter of a federated run

Task `{task}`, {sites} sites, {rounds} rounds, codec `{codec}`, held-out accuracy {accuracy:.4f}.
It loads with stock PEFT; fedcompress is not needed:

```python
BASE = {base!r}
ADAPTER = "."
{usage}```
"""
# How a language model is loaded with its adapter; ``{kind}`` is the class of transformers.
LANGUAGE = """\
from peft import PeftModel
from transformers import {kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(BASE)
model = PeftModel.from_pretrained({kind}.from_pretrained(BASE), ADAPTER).eval()
"""
# How a classifier with the stock head of transformers is loaded.
STOCK = """\
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=len(LABELS))
model = PeftModel.from_pretrained(base, ADAPTER).eval()
"""


def format_usage(objective: Objective) -> str:
    """Format the Python code that loads an adapter with stock PEFT.

    The code needs ``BASE`` and ``ADAPTER``, two paths, and defines ``model``.
    """
    match objective:
        case Classification(head="mean-pool-linear"):
            return f"LABELS = {list(objective.labels)!r}\n\n{USAGE}"
        case Classification():
            return f"LABELS = {list(objective.labels)!r}\n\n{STOCK}"
        case CausalLM():
            return LANGUAGE.format(kind="AutoModelForCausalLM")
        case Seq2SeqLM():
            return LANGUAGE.format(kind="AutoModelForSeq2SeqLM")


def write_card(folder: Path, base: Path, objective: Objective, result: Mapping[str, Any]) -> None:
    """Write ``README.md`` into an adapter folder.

    Args:
        folder: the exported adapter.
        base: the folder of the base model, as it stands in the example.
        objective: what was learnt.
        result: of the run, with ``task``, ``sites``, ``rounds``, ``codec`` and ``accuracy_end``.
    """
    text = _CARD.format(
        task=result["task"],
        sites=result["sites"],
        rounds=len(result["rounds"]),
        codec=result["codec"],
        accuracy=result["accuracy_end"],
        base=str(base),
        usage=format_usage(objective),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
