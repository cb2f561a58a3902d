"""``fedcompress template`` makes the folder that a run starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcompress.cli.help import RUN_SECTION, App

if TYPE_CHECKING:
    from fedcompress.adapters.template import Template


def register(app: App) -> None:
    """Add the command to the app."""
    app.add(template, section=RUN_SECTION)


def template(
    model: Annotated[str, typer.Argument(help="Folder of the base model, a GGUF file, or a hub id.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    task: Annotated[str, typer.Option(help="classification, causal-lm or seq2seq-lm.")] = "causal-lm",
    adapter: Annotated[str, typer.Option(help="As lora(r=16), see `fedcompress adapters`.")] = "lora",
    labels: Annotated[
        str, typer.Option(help="Class names joined by commas, or @FILE with one a line; for classification.")
    ] = "",
    head: Annotated[
        str,
        typer.Option(help="Of a classifier: mean-pool-linear learns in fewer steps; stock is the one of transformers."),
    ] = "mean-pool-linear",
    texts: Annotated[
        str, typer.Option(help="File with one sample text a line, for adapters that start from data: eva, corda.")
    ] = "",
    revision: Annotated[str, typer.Option(help="Of a hub id.")] = "",
    seed: Annotated[int, typer.Option(help="Of all that is drawn; give the run the same.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make the start of a run: the adapter, what it learns, and what all sites must agree on.

    The coordinator's run config names the folder as ``initial-adapter``. It is a stock PEFT folder, with a manifest.

    Examples:
      fedcompress template ./smollm2 --adapter "lora(r=16,targets=all-linear)" -o initial
      fedcompress template ./minilm --task classification --labels yes,no --adapter "lora(r=8,targets=query+value)" -o x
      fedcompress template ./llama --adapter "vera(r=256)" -o initial --json
      fedcompress template ./llama --adapter "eva(r=16)" --texts samples.txt -o initial
      fedcompress template ./smollm2 --adapter full -o initial
    """
    written = _write(model, out, task, adapter, labels, head, revision, seed, texts)
    numel = written.adapter.layout.numel
    tensors = len(written.adapter.layout.tensors)
    if as_json:
        facts = {
            "out": str(out),
            "adapter": adapter,
            "task": task,
            "parameters": numel,
            "tensors": tensors,
            "base_fingerprint": written.base_fingerprint,
            "tokenizer": written.tokenizer,
            "constants": written.constants,
            "quantization": written.quantization,
        }
        print(json.dumps(facts))
    else:
        print(f"{out}: {adapter} on {model}: {numel:,} parameters in {tensors} tensors")
        if task == "classification" and head == "mean-pool-linear":
            print("the head is a linear layer on the mean of the token vectors: README.md of an export loads it,")
            print("and --head stock is the head of AutoModelForSequenceClassification")


def _write(
    model: str, out: Path, task: str, adapter: str, labels: str, head: str, revision: str, seed: int, texts: str
) -> Template:
    """Check the options of the command together, and write the folder."""
    from fedcompress.adapters.base_model import BaseModel, resolve_model
    from fedcompress.adapters.spec import parse_adapter
    from fedcompress.adapters.template_builder import write_template
    from fedcompress.config.objective import OBJECTIVES, Classification, objective_from
    from fedcompress.errors import ConfigError, one_of

    if seed < 0:
        raise ConfigError("--seed", seed, "must be >= 0")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--out", out, f"must be a folder that can be written: {error.strerror}") from error
    if task not in OBJECTIVES:
        raise ConfigError("--task", task, one_of(OBJECTIVES, task))
    raw: dict[str, object] = {"name": task}
    if task == Classification.name:
        raw |= {"labels": _parse_labels(labels), "head": head}
    elif labels:
        raise ConfigError("--labels", labels, "is for --task classification")
    spec = parse_adapter(adapter, field="--adapter")
    base = BaseModel(path=resolve_model(model, Path(), revision, field="model"))
    objective = objective_from(raw, field="--task")
    samples = _read_lines("--texts", texts) if texts else []
    if spec.row.start == "base":
        from fedcompress.adapters.full.template import write_weights_template

        if samples:
            raise ConfigError("--texts", texts, f"are not for {spec.name}")
        return write_weights_template(out, base, objective, spec)
    return write_template(out, base, objective, spec, seed=seed, texts=samples)


def _parse_labels(text: str) -> list[str]:
    """Return the class names in the option, or in the file that it names."""
    if not text.startswith("@"):
        return [name.strip() for name in text.split(",") if name.strip()]
    return _read_lines("--labels", text[1:])


def _read_lines(option: str, name: str) -> list[str]:
    """Return the lines of a file that are not empty."""
    from fedcompress.errors import ConfigError

    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(option, name, f"must be a readable file: {error}") from error
    return [line.strip() for line in lines if line.strip()]
