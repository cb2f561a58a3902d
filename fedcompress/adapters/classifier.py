"""Builds a mean-pooled text classifier over a frozen encoder, for a PEFT adapter to be put on.

The head is a linear layer on the normalised mean of the token vectors, times 16: sentence
encoders are trained for that vector, and the stock head on the first token learns far more
slowly. The factor is an inverse temperature; on a vector of length 1 the head would need
large weights, which Adam reaches only after hundreds of steps.

A user loads the exported adapter with the snippet in ``USAGE``, without this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

CODE = """\
import torch
from transformers import AutoModel


class Classifier(torch.nn.Module):
    def __init__(self, base: str, labels: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(base)
        self.classifier = torch.nn.Linear(self.encoder.config.hidden_size, labels)

    def forward(self, input_ids, attention_mask):
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        return self.classifier(16 * torch.nn.functional.normalize(mean, dim=1))
"""
# How an adapter is put on it.
USAGE = f"""\
{CODE}

from peft import PeftModel

model = PeftModel.from_pretrained(Classifier(BASE, len(LABELS)), ADAPTER).eval()
"""


def build_classifier(path: Path, labels: int, options: Mapping[str, Any] | None) -> Module:
    """Build the module of ``CODE``.

    Args:
        path: folder of the encoder.
        labels: number of classes.
        options: arguments of ``from_pretrained``; None to make the shapes only, without reading weights.

    Returns:
        A module that gives logits of shape (batch, labels) of ``input_ids`` and ``attention_mask``, both of shape
        (batch, tokens). The head is float32, whatever the encoder's dtype is.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    class Classifier(torch.nn.Module):  # type: ignore[misc]  # torch is not imported when types are checked
        def __init__(self) -> None:
            super().__init__()
            if options is None:
                self.encoder = AutoModel.from_config(AutoConfig.from_pretrained(path))
            else:
                self.encoder = AutoModel.from_pretrained(path, **options)
            self.classifier = torch.nn.Linear(self.encoder.config.hidden_size, labels)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            return self.classifier(16 * torch.nn.functional.normalize(mean, dim=1))

    return Classifier()
