"""Mean-pooled text classifier over a frozen encoder, and its PEFT adapter.

The head is a linear layer on the normalised mean of the token vectors, times 16: sentence
encoders are trained for that vector, and the stock head on the first token learns far more
slowly. The factor is an inverse temperature; on a vector of length 1 the head would need
large weights, which Adam reaches only after hundreds of steps.
A user loads the exported adapter with the snippet in ``USAGE``, without this package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.adapters.folder import Adapter, save_adapter
from fedcompress.adapters.groups import group_of
from fedcompress.adapters.init import seeded_init
from fedcompress.errors import LayoutError
from fedcompress.types import DTYPES, Layout, TensorSpec

USAGE = """\
import torch
from peft import PeftModel
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


model = PeftModel.from_pretrained(Classifier(BASE, len(LABELS)), ADAPTER).eval()
"""


def build_classifier(model_dir: Path, labels: int, *, meta: bool = False) -> Any:
    """The module of ``USAGE``; with ``meta`` only its shapes, without reading weights."""
    import torch
    from transformers import AutoConfig, AutoModel

    class Classifier(torch.nn.Module):  # type: ignore[misc]  # torch is not imported when types are checked
        def __init__(self) -> None:
            super().__init__()
            if meta:
                self.encoder = AutoModel.from_config(AutoConfig.from_pretrained(model_dir))
            else:
                self.encoder = AutoModel.from_pretrained(model_dir, dtype=torch.float32)
            self.classifier = torch.nn.Linear(self.encoder.config.hidden_size, labels)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            return self.classifier(16 * torch.nn.functional.normalize(mean, dim=1))

    if meta:
        with torch.device("meta"):
            return Classifier()
    return Classifier()


def add_adapter(module: Any, config: Mapping[str, Any]) -> Any:
    """``PeftModel`` around ``module`` from the JSON of an adapter_config.json."""
    from peft import PeftConfig, get_peft_model

    shared = {k: v for k, v in config.items() if k not in ("auto_mapping", "base_model_name_or_path", "inference_mode")}
    return get_peft_model(module, PeftConfig.from_peft_type(**shared))


def trainable(model: Any) -> dict[str, Any]:
    """Trainable parameters under the names of PEFT's state dict, sorted by name.

    Raises:
        LayoutError: PEFT saves other tensors than are trained.
    """
    from peft import get_peft_model_state_dict

    named = {
        name.replace(".modules_to_save.default.", ".").replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    saved = set(get_peft_model_state_dict(model))
    if set(named) != saved:
        raise LayoutError(f"adapter: trained and saved tensors differ: {sorted(saved ^ set(named))[:4]}")
    return dict(sorted(named.items()))


def layout_of(model: Any) -> Layout:
    """Layout of the trainable parameters."""
    specs = []
    for name, parameter in trainable(model).items():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise LayoutError(f"adapter: {name}: {dtype}: one of {list(DTYPES)}")
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        specs.append(TensorSpec(name=name, shape=shape, dtype=dtype, group=group_of(name)))
    return Layout(tuple(specs))


def write_template(
    folder: Path, model_dir: Path, labels: int, *, rank: int, targets: tuple[str, ...], seed: int
) -> Adapter:
    """The seeded start of a run as a PEFT folder, made without reading the base's weights.

    Args:
        folder: where to write.
        model_dir: base model; only its config.json is read.
        labels: number of classes.
        rank: LoRA rank; alpha is twice the rank.
        targets: suffixes of the adapted module names.
        seed: of ``seeded_init``.
    """
    from peft import LoraConfig

    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), modules_to_save=["classifier"])
    config = json.loads(json.dumps(lora.to_dict(), default=lambda value: sorted(value)))
    config["base_model_name_or_path"] = str(model_dir)
    model = add_adapter(build_classifier(model_dir, labels, meta=True), config)
    layout = layout_of(model)
    tensors = seeded_init(layout, seed)
    save_adapter(folder, {**config, "inference_mode": True}, layout, tensors)
    return Adapter(config=config, layout=layout, tensors=tensors)
