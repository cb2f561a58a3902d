"""Every adapter of PEFT at the shapes of SmolLM2-135M: what is trained, what a round sends up, what merging misses.

    python -m benchmarks.adapters [--only lora,vera] [--layers 2] [--steps 5] [--json] [--write]

Two sites learn from two pages of the documentation, from one start. The error of a merge is the distance of the merged
weights from the mean of the sites' weights, relative to how far that mean moved; of outputs where PEFT does not merge
into weights.
``--write`` puts the table into docs/adapters.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import row, show, write_between
from fedcompress import encode_update, state_digest
from fedcompress.adapters import ADAPTERS, parse_adapter
from fedcompress.adapters.attach import AdaptedModel, attach_adapter, set_constants
from fedcompress.adapters.base_model import BaseModel, build_base, load_tokenizer
from fedcompress.adapters.constants import CONSTANTS, INITIAL_FACTOR_SUFFIX, constants_digest, load_constants
from fedcompress.adapters.table import LINEAR, PRODUCT
from fedcompress.adapters.template import Template
from fedcompress.adapters.template_builder import write_template
from fedcompress.codecs import CodecSpec
from fedcompress.config.objective import CausalLM
from fedcompress.config.run_config import RunConfig
from fedcompress.merging import InMemoryUpdates, Merger, parse_rule
from fedcompress.types import Tensors, to_arrays
from fedcompress.wire import Header, Kind

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("codecs.md", "optimizers.md")  # of the two sites
SEED = 3
LENGTH = 32
ROWS = 2
SAMPLES = 16
ROUNDING = 3e-7  # of float32 weights, a few times
CALLS = {
    "c3a": "block_size=64",
    "mask": "kind=lift,density=0.01",
    "prefix-tuning": "num_virtual_tokens=20",
    "trainable-tokens": "token_indices=100+101+102+103",
    "vb-lora": "vector_length=64",
}
MEASURED = [name for name, found in ADAPTERS.items() if found.peft]  # weights of the base: benchmarks.site
PLAIN = ("prompt-tuning", "prefix-tuning", "beft")  # PEFT does not merge these into weights


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One adapter."""

    call: str
    form: str
    parameters: int
    bf16: int  # bytes up
    coded: int  # bytes up, default codec
    constants: int  # bytes of the file
    always: bool  # whether each new site is sent them
    missed: float
    rounding: float  # what float32 leaves of so small a change of such weights
    seconds: float


def call_of(name: str) -> str:
    """An adapter, with the settings that the shapes need."""
    return f"{name}({CALLS[name]})" if name in CALLS else name


def shallow(folder: Path, layers: int) -> Path:
    """The first layers of SmolLM2-135M, with its embeddings."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from fedcompress.demo.data import smollm2_folder

    whole = smollm2_folder()
    config = AutoConfig.from_pretrained(whole, num_hidden_layers=layers)
    AutoModelForCausalLM.from_pretrained(whole, config=config).save_pretrained(folder)
    load_tokenizer(whole).save_pretrained(folder)
    return folder


def batches(base: BaseModel, page: str, steps: int) -> list[Any]:
    """Consecutive tokens of a page."""
    import torch

    ids = load_tokenizer(base.path)((DOCS / page).read_text(encoding="utf-8"))["input_ids"]
    size = LENGTH * ROWS
    ids = ids * (1 + steps * size // len(ids))  # a short page is read again
    return [torch.tensor(ids[i * size : (i + 1) * size]).reshape(ROWS, LENGTH) for i in range(steps)]


def site(folder: Path, base: BaseModel, template: Template) -> AdaptedModel:
    """A model in the run's start."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = build_base(base, template.objective)
        attached = attach_adapter(module, template.adapter.config, template.freeze)
    if constants_digest(attached.constants) != template.constants:
        set_constants(attached, load_constants((folder / CONSTANTS).read_bytes()))
    return attached


def put(attached: AdaptedModel, state: Tensors) -> None:
    """Set what is trained."""
    import torch

    with torch.no_grad():
        for name, parameter in attached.parameters.items():
            parameter.copy_(torch.from_numpy(state[name]))


def trained(attached: AdaptedModel, data: Sequence[Any], lr: float) -> Tensors:
    """The state after a step of AdamW on each batch."""
    import torch

    attached.model.train()
    optimizer = torch.optim.AdamW(list(attached.parameters.values()), lr=lr, weight_decay=0)
    for ids in data:
        optimizer.zero_grad()
        attached.model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimizer.step()
    attached.model.eval()
    return {n: v.copy() for n, v in to_arrays(attached.parameters).items()}


def weights(attached: AdaptedModel, state: Tensors, name: str, probe: Any) -> dict[str, Any]:
    """Weights that result, or outputs."""
    import torch

    put(attached, state)
    if name in PLAIN:
        with torch.no_grad():
            return {"outputs": attached.model(input_ids=probe, attention_mask=torch.ones_like(probe)).logits.double()}
    plain = copy.deepcopy(attached.model).merge_and_unload()
    kept = {n: p.detach().double() for n, p in plain.named_parameters()}
    return kept if name == "trainable-tokens" else {n: p for n, p in kept.items() if "embed" not in n}


def missed(
    merged: Mapping[str, Any], each: Sequence[Mapping[str, Any]], start: Mapping[str, Any]
) -> tuple[float, float]:
    """Distance from the mean, and rounding, relative to how far the mean moved."""
    off = moved = size = 0.0
    for name, before in start.items():
        mean = sum(one[name] for one in each) / len(each)
        off += float(((merged[name] - mean) ** 2).sum())
        moved += float(((mean - before) ** 2).sum())
        size += float((before**2).sum()) if bool((mean != before).any()) else 0.0
    return (off / moved) ** 0.5, ROUNDING * (size / moved) ** 0.5


def bytes_up(template: Template, update: Tensors, codec: str) -> int:
    """Return the bytes of one encoded update."""
    layout, start = template.adapter.layout, template.adapter.tensors
    header = Header(
        kind=Kind.UPDATE,
        run="bench",
        site="north",
        round=1,
        version=0,
        codec=codec,
        layout_digest=layout.digest,
        base_digest=state_digest(layout, start),
        examples=1,
    )
    return len(encode_update(update, layout, CodecSpec.parse(codec), header)[0])


def measure(name: str, base: BaseModel, folder: Path, steps: int, lr: float) -> Measured:
    """Two sites, one round."""
    began, spec = time.perf_counter(), parse_adapter(call_of(name))
    texts = (DOCS / "merging.md").read_text(encoding="utf-8").splitlines() if spec.row.start == "texts" else []
    template = write_template(
        folder, base, CausalLM(), spec, seed=SEED, texts=[t for t in texts if len(t) > 80][:SAMPLES]
    )
    loaded = BaseModel(path=base.path, quantization=template.quantization or "none")
    attached, start = site(folder, loaded, template), template.adapter.tensors
    states = []
    for page in PAGES:
        put(attached, start)
        states.append(trained(attached, batches(base, page, steps), lr))
    updates = [{n: s[n] - start[n] for n in start} for s in states]
    rule = parse_rule("lora-ridge" if spec.row.merge == PRODUCT else "mean")
    layout = template.adapter.layout
    step = Merger(rule=rule, layout=layout).merge(start, [1.0, 1.0], InMemoryUpdates(layout, updates))
    merged = {n: start[n] + step[n] for n in start}
    probe = batches(base, "merging.md", 1)[0]
    whole = attached if loaded == base else site(folder, base, template)  # merging into 4 bits would round again
    found = [weights(whole, s, name, probe) for s in (merged, start, *states)]
    off, rounding = missed(found[0], found[2:], found[1])
    sent = load_constants((folder / CONSTANTS).read_bytes()) if template.constants else {}
    return Measured(
        call=call_of(name),
        form=spec.row.merge,
        parameters=layout.numel,
        bf16=bytes_up(template, updates[0], "bf16"),
        coded=bytes_up(template, updates[0], RunConfig.__dataclass_fields__["codec"].default),
        constants=(folder / CONSTANTS).stat().st_size if sent else 0,
        always=any(n.endswith(INITIAL_FACTOR_SUFFIX) for n in sent),
        missed=off,
        rounding=rounding,
        seconds=time.perf_counter() - began,
    )


def rows_of(one: Measured) -> list[dict[str, Any]]:
    """In the shape of all benchmarks."""
    call = one.call
    exact = one.form == LINEAR and call.partition("(")[0] not in PLAIN
    target: dict[str, Any] = {"target": f"<= {one.rounding:.1e}", "pass": one.missed <= one.rounding} if exact else {}
    return [
        row(f"{call}: trained", one.parameters, "numbers"),
        row(f"{call}: bf16", one.bf16, "B up"),
        row(f"{call}: default codec", one.coded, "B up", note=f"{one.bf16 / one.coded:.1f} x fewer than bf16"),
        row(f"{call}: merge", one.missed, "relative", note=one.form, **target),
    ]


def table(found: Sequence[Measured]) -> str:
    """Markdown."""
    lines = ["| adapter | merge | trained | bf16, B | default codec, B | ratio | constants, B | merge misses |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for one in found:
        constants = f"{one.constants:,}{', sent' if one.always else ''}" if one.constants else ""
        sizes = f"{one.parameters:,} | {one.bf16:,} | {one.coded:,} | {one.bf16 / one.coded:.1f}"
        lines.append(f"| `{one.call}` | {one.form} | {sizes} | {constants} | {one.missed:.1e} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(MEASURED))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="the table into docs/adapters.md")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := sorted(set(names) - set(MEASURED)):
        parser.error(f"--only: {unknown}: must be of {MEASURED}")
    found = []
    with tempfile.TemporaryDirectory() as place:
        base = BaseModel(path=shallow(Path(place) / "base", args.layers))
        for number, name in enumerate(names):
            found.append(measure(name, base, Path(place) / str(number), args.steps, args.lr))
            print(f"{name}: {json.dumps(vars(found[-1]))}", file=sys.stderr, flush=True)
    if args.write:
        write_between(DOCS / "adapters.md", "table of benchmarks.adapters", table(found))
    show([r for one in found for r in rows_of(one)], args.json)


if __name__ == "__main__":
    main()
