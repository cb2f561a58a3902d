"""A federation of two sites in one process: tiny bases, sites made ready as in a run, and stock PEFT beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clients.training.delta_file import write_delta
from clients.training.job import DELTA
from clients.training.model import keep_unpacked, load_model
from fedcompress.adapters.attach import AdaptedModel
from fedcompress.adapters.base_model import BaseModel, build_base
from fedcompress.adapters.constants import CONSTANTS, load_constants
from fedcompress.adapters.export import export_adapter
from fedcompress.adapters.full import trains_base_weights
from fedcompress.adapters.full.attach import FullWeightsModel
from fedcompress.adapters.full.export import export_model
from fedcompress.adapters.full.template import write_weights_template
from fedcompress.adapters.spec import AdapterSpec, parse_adapter
from fedcompress.adapters.table import PRODUCT
from fedcompress.adapters.template import Template
from fedcompress.adapters.template_builder import write_template
from fedcompress.config.objective import Classification, Objective, objective_json
from fedcompress.config.train_task import TrainTask
from fedcompress.merging import InMemoryUpdates, Merger, parse_rule
from fedcompress.storage.tensor_file import open_tensor_file
from fedcompress.types import Tensors, to_arrays

WORDS = 64
SEED = 11


def tokenizer(folder: Path) -> None:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="w1", pad_token="w2").save_pretrained(folder)


def llama(folder: Path, width: int = 32) -> Path:
    """Two layers, with weights large enough that every part of the model counts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(folder)
    return folder


def t5(folder: Path) -> Path:
    """An encoder and a decoder of one layer each."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    config = T5Config(vocab_size=WORDS, decoder_start_token_id=2, pad_token_id=2, **sizes)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer(folder)
    return folder


@dataclass(frozen=True)
class Run:
    """A template, and what a site needs of it."""

    folder: Path
    base: BaseModel
    spec: AdapterSpec
    template: Template

    @property
    def constants(self) -> dict[str, Any]:
        """As they are sent."""
        path = self.folder / CONSTANTS
        return load_constants(path.read_bytes()) if path.is_file() else {}

    @property
    def loaded(self) -> BaseModel:
        """The base, as the template wants it."""
        return replace(self.base, quantization=self.template.quantization or "none")

    def site(self, base: BaseModel | None = None, *, sent: bool = True) -> AdaptedModel:
        """A model of a site, in the run's start."""
        template, path = self.template, self.folder / CONSTANTS
        task = TrainTask(
            run="run",
            round=1,
            version=0,
            steps=1,
            batch_size=1,
            lr=0.1,
            optimizer="adamw",
            codec="none",
            feedback=1.0,
            max_length=8,
            objective=objective_json(template.objective),
            seed=SEED,
            adapter_config="{}",
            layout=template.adapter.layout.to_json(),
            freeze=template.freeze,
            tokenizer=template.tokenizer,
            constants=template.constants,
            quantization=template.quantization,
        )
        shipped = path if sent and path.is_file() else None
        attached = load_model(base or self.loaded, task, template.adapter.config, shipped)
        put(attached, template.adapter.tensors)
        attached.model.eval()
        return attached

    def stock(self, folder: Path, state: Tensors, **options: Any) -> Any:
        """What stock PEFT makes of the exported state on a fresh base."""
        from peft import PeftModel

        if trains_base_weights(self.template.adapter.config):
            export_model(folder, self.template, state)
            return build_base(BaseModel(path=folder), self.template.objective).eval()
        export_adapter(folder, self.template, state, self.constants)
        torch.manual_seed(12345)  # what is not in the folder would now differ
        base = build_base(self.loaded, self.template.objective)
        keep_unpacked(base)  # packed 4-bit weights are multiplied in bfloat16
        return PeftModel.from_pretrained(base, folder, **options).eval()

    def merge(self, states: list[Tensors]) -> Tensors:
        """The published state after a round of two equal sites."""
        start, layout = self.template.adapter.tensors, self.template.adapter.layout
        updates = [{n: s[n] - start[n] for n in start} for s in states]
        rule = parse_rule("lora-ridge" if self.spec.row.merge == PRODUCT else "mean")
        step = Merger(rule=rule, layout=layout).merge(start, [1.0] * len(states), InMemoryUpdates(layout, updates))
        return {n: start[n] + step[n] for n in start}


def run_of(folder: Path, base: Path, adapter: str, objective: Objective, **options: Any) -> Run:
    """Make the start of a run."""
    model, spec = BaseModel(path=base), parse_adapter(adapter)
    if spec.row.start == "base":
        return Run(folder, model, spec, write_weights_template(folder, model, objective, spec))
    return Run(folder, model, spec, write_template(folder, model, objective, spec, seed=SEED, **options))


def put(attached: AdaptedModel, state: Tensors) -> None:
    """Set what is trained, as the engine does."""
    values = attached.values(state, "run", 1) if isinstance(attached, FullWeightsModel) else state
    with torch.no_grad():
        for name, parameter in {**attached.frozen, **attached.parameters}.items():
            parameter.copy_(torch.from_numpy(values[name]))


def batch(objective: Objective, seed: int, *, rows: int = 4, length: int = 8) -> dict[str, Any]:
    """Random tokens, and what is to be learnt of them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (rows, length), generator=generator)
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if isinstance(objective, Classification):
        out["labels"] = torch.randint(0, len(objective.labels), (rows,), generator=generator)
    else:
        out["labels"] = torch.randint(3, WORDS, (rows, length), generator=generator)
    return out


def outputs(model: Any, objective: Objective, seed: int = 99) -> Any:
    """Logits on a batch of its own."""
    inputs = batch(objective, seed)
    if objective.name != "seq2seq-lm":
        inputs.pop("labels")
    with torch.no_grad():
        made = model(**inputs)
    return made if isinstance(made, torch.Tensor) else made.logits


def trained(run: Run, site: int, *, steps: int = 3, lr: float = 0.05) -> Tensors:
    """What a site has after training on data of its own."""
    attached, objective = run.site(), run.template.objective
    attached.model.train()
    optimizer = torch.optim.AdamW(list(attached.parameters.values()), lr=lr, weight_decay=0)
    for step in range(steps):
        data = batch(objective, 1000 * site + step)
        labels = data.pop("labels") if isinstance(objective, Classification) else None
        made = attached.model(**data)
        logits = made if isinstance(made, torch.Tensor) else made.logits
        loss = made.loss if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if isinstance(attached, FullWeightsModel):
        return extracted(run.folder, attached, run.template.adapter.tensors)
    return {n: v.copy() for n, v in to_arrays(attached.parameters).items()}


@dataclass
class Streams:
    """What extraction needs of an engine."""

    parameters: Mapping[str, Any]
    device: str = "cpu"

    def stream(self) -> Iterator[tuple[str, Any]]:
        for name, parameter in self.parameters.items():
            yield name, parameter.detach()


def extracted(folder: Path, attached: FullWeightsModel, start: Mapping[str, Any]) -> Tensors:
    """The state after training, through the file that a rank writes."""
    values = attached.values(start, "run", 1)
    assert write_delta(Streams(attached.parameters), values, attached.layout, folder / "work")
    update = open_tensor_file(folder / "work" / DELTA, attached.layout)
    return {n: start[n] + update[n] for n in update}


def effective(attached: AdaptedModel, state: Tensors) -> dict[str, Any]:
    """Weights of the adapted model: those of the base after PEFT has merged the adapter into them.

    Types without such a merge give their outputs instead.
    """
    import copy

    put(attached, state)
    if isinstance(attached, FullWeightsModel):
        return {n: p.detach().double().clone() for n, p in (attached.whole or {}).items()}
    model = copy.deepcopy(attached.model)
    plain = model.merge_and_unload()
    return {n: p.detach().double() for n, p in plain.named_parameters()}


def error(merged: Mapping[str, Any], states: list[Mapping[str, Any]], start: Mapping[str, Any]) -> float:
    """Distance of merged weights from the mean of the sites', relative to the mean's change."""
    mean = {n: sum(s[n] for s in states) / len(states) for n in start}
    missed = sum(float(((merged[n] - mean[n]) ** 2).sum()) for n in start)
    moved = sum(float(((mean[n] - start[n]) ** 2).sum()) for n in start)
    return (missed / moved) ** 0.5 if moved else 0.0
