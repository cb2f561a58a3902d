"""``fedcompress plan`` predicts the memory of each rank."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcompress.cli.help import LOOKUP_SECTION, App

if TYPE_CHECKING:
    from fedcompress.optim.memory_plan import Setup

DEFAULT = "frugal(state=8bit)"  # optimizer, if none is named
# Parts of the memory, as they are printed.
PARTS = ("weights", "masters", "gradients", "state", "buffers", "activations", "total")


def register(app: App) -> None:
    """Add the command to the app."""
    app.add(plan, section=LOOKUP_SECTION)


def plan(
    model: Annotated[str, typer.Argument(help="Folder with a config.json, or a name on the hub.")],
    optimizer: Annotated[
        list[str] | None,
        typer.Option(help="As frugal(density=0.25), again for more. [default: frugal(state=8bit)]"),
    ] = None,
    zero: Annotated[int, typer.Option(help="ZeRO stage, 0 to 3.")] = 2,
    gpus: Annotated[int, typer.Option(help="Ranks.")] = 1,
    dtype: Annotated[str, typer.Option(help="Of the weights: bf16, fp16, fp32.")] = "bf16",
    micro_batch: Annotated[int, typer.Option(help="Examples that a rank handles at once.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of an example.")] = 1024,
    lora_rank: Annotated[int, typer.Option(help="Train LoRA of this rank on all linear layers; 0: all weights.")] = 0,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Compute activations again.")] = False,
    bucket: Annotated[int, typer.Option(help="DeepSpeed's reduce_bucket_size.")] = 500_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predict the memory of each rank, and which card has room for it. No weights are read.

    Examples:
      fedcompress plan meta-llama/Llama-3.2-1B --optimizer "galore(rank=256)" --zero 2 --gpus 4
      fedcompress plan ./model --optimizer adamw --optimizer adamw8bit --optimizer "frugal(state=8bit)" --gpus 2
      fedcompress plan ./model --lora-rank 16 --zero 3 --gpus 8 --length 4096 --checkpointing --json
    """
    from fedcompress.optim.memory_plan import Setup
    from fedcompress.optim.memory_plan import plan as count

    shape = {"zero": zero, "ranks": gpus, "dtype": dtype, "micro_batch": micro_batch, "length": length}
    options: dict[str, Any] = shape | {"checkpointing": checkpointing, "bucket": bucket}
    setups = [Setup(optimizer=text, **options) for text in optimizer or [DEFAULT]]
    empty_model = on_meta(model, lora_rank)
    rows = [{"optimizer": setup.optimizer, **count(empty_model, setup).as_dict()} for setup in setups]
    if as_json:
        print(json.dumps({"model": model, **options, "plans": rows}))
    else:
        _show(model, setups[0], rows)


def on_meta(name: str, lora_rank: int) -> Any:
    """Build a model on torch's meta device, which has shapes but no weights.

    Args:
        name: folder with a config.json, or a name on the hub.
        lora_rank: of LoRA on all linear layers; 0: none.

    Raises:
        ConfigError: there is no model of that name, or it is of no known type.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from fedcompress.errors import ConfigError

    if lora_rank < 0:
        raise ConfigError("lora-rank", lora_rank, "must be at least 0")
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError("model", name, f"must be a folder or hub name with a config.json: {error}") from error
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config)
        except ValueError:
            model = AutoModel.from_config(config)
        if lora_rank:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=lora_rank, target_modules="all-linear"))
    return model


def _show(model: str, setup: Setup, rows: list[dict[str, Any]]) -> None:
    """Print the parts of the memory for each optimizer: as one table if it fits into 120 columns, else one by one."""
    where = f"ZeRO-{setup.zero}, {setup.ranks} GPUs, {setup.dtype}, {setup.micro_batch} x {setup.length} tokens"
    size = f"{rows[0]['parameters'] / 1e6:,.0f}M parameters, {rows[0]['trainable'] / 1e6:,.1f}M trained"
    print(f"{model}: {size}\n{where}; GiB on the fullest rank\n")
    width = max(len(row["optimizer"]) for row in rows) if len(rows) > 1 else 0
    is_table = 0 < width <= 120 - 12 * (len(PARTS) + 1)
    names = "".join(f"{part:>12}" for part in (*PARTS, "GiB card"))
    if is_table:
        print(" " * width + names)
    for row in rows:
        numbers = "".join(f"{row[part] / (1 << 30):12.2f}" for part in PARTS)
        numbers += f"{row['fits_gib'] or 'none':>13}"
        if is_table:
            print(f"{row['optimizer']:<{width}}{numbers}")
        else:
            print(f"{row['optimizer']}\n{names}\n{numbers}")
    for note in dict.fromkeys(n for row in rows for n in row["notes"]):
        print(f"note: {note}")
    print("note: activations are an estimate")
