"""Makes a site's model ready: base, adapter and constants, with the checks that they are the run's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.training.job import STATE, Job
from fedcompress.adapters import Adapter
from fedcompress.adapters.attach import AdaptedModel, attach_adapter, check_quantized, set_constants
from fedcompress.adapters.base_model import BaseModel, build_base, tokenizer_digest
from fedcompress.adapters.constants import constants_digest, load_constants
from fedcompress.adapters.full import trains_base_weights
from fedcompress.adapters.full.attach import FullWeightsModel, attach_weights
from fedcompress.adapters.full.base_files import BaseWeights
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError, MismatchError
from fedcompress.storage.tensor_file import open_tensor_file
from fedcompress.types import Array, Layout


def load_model(base: BaseModel, task: TrainTask, config: Mapping[str, Any], constants: Path | None) -> AdaptedModel:
    """Load the base, and attach what a round trains.

    Args:
        base: what site.toml says of the model.
        task: the round.
        config: JSON of the adapter's config, or of the weights that are trained.
        constants: file of constants, if they were sent.

    Returns:
        The model with its trainable parameters, in the layout of the run.

    Raises:
        MismatchError: ``tokenizer``, ``layout-mismatch`` or ``constants``: what is here is not what the run has.
        ConfigError: the base cannot be loaded so, or the adapter does not fit it.
    """
    import torch

    if task.tokenizer and (here := tokenizer_digest(base.path)) != task.tokenizer:
        rule = f"the run's is {task.tokenizer[:16]}: its vocabulary, merges and chat template must be equal"
        raise MismatchError("tokenizer", f"tokenizer: {base.path}: {here[:16]}: {rule}")
    if task.quantization not in ("", base.quantization):
        rule = f"must be {task.quantization}: the run's adapter starts from what that loses"
        raise ConfigError("model.quantization", base.quantization, rule)
    check_quantized(config, base.quantization)
    is_full = trains_base_weights(config)
    module = _build_float32_base(base, task) if is_full else build_base(base, task.learns)
    if base.quantization != "none":
        from peft import prepare_model_for_kbit_training

        keep_unpacked(module)
        module = prepare_model_for_kbit_training(module, use_gradient_checkpointing=base.gradient_checkpointing)
    elif base.gradient_checkpointing:
        inner = module if hasattr(module, "gradient_checkpointing_enable") else module.encoder
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        inner.enable_input_require_grads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        if is_full:
            files = BaseWeights(base.path)
            model: AdaptedModel = attach_weights(module, config, files, task.freeze, seed=task.seed, round_=task.round)
        else:
            model = attach_adapter(module, config, task.freeze)
    if model.layout.to_json() != task.layout:
        raise MismatchError(
            "layout-mismatch", f"adapter: {_describe_difference(model.layout, Layout.from_json(task.layout))}"
        )
    _set_run_constants(model, task.constants, constants)
    if base.compile:
        model.model.compile()
    return model


def load_round_start(model: AdaptedModel, job: Job, adapter: Adapter) -> Mapping[str, Array]:
    """Load what the trained and the frozen parameters are set to at the start of a round.

    Args:
        model: of the round.
        job: has the published state, and the round.
        adapter: what ``load_adapter`` has read from the published folder.

    Returns:
        float32 by name: the adapter's tensors, or, where weights of the base are trained, base plus published state,
        each made when it is asked for.
    """
    if not isinstance(model, FullWeightsModel):
        return adapter.tensors
    file = job.published / STATE
    published = open_tensor_file(file, adapter.layout) if file.exists() else adapter.tensors
    return model.values(published, job.task.run, job.task.round)


def _build_float32_base(base: BaseModel, task: TrainTask) -> Any:
    """Load a base whose own weights are trained: they are float32, and compute in the site's dtype where it is smaller.

    Steps would be lost in the rounding of weights of two bytes.
    """
    import torch

    if base.dtype == "float16":
        rule = "must be bfloat16 or float32 where weights of the base are trained"
        raise ConfigError("model.dtype", base.dtype, rule)
    module = build_base(replace(base, dtype="float32"), task.learns)
    if base.dtype == "bfloat16":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        module.forward = torch.autocast(device, torch.bfloat16)(module.forward)
    return module


def keep_unpacked(module: Any) -> None:
    """Stop bitsandbytes from packing 4-bit weights at the first evaluation on a CPU.

    Packed ones are for inference: training after it has wrong gradients, or none, and nothing says so.
    """
    for part in module.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False


def _describe_difference(here: Layout, wanted: Layout) -> str:
    """Name the first tensor in which the base here and the run differ."""
    rule = "the base model here gives other trainable tensors"
    own, run = ({t.name: t for t in layout.tensors} for layout in (here, wanted))
    for name in sorted(own.keys() | run.keys()):
        if own.get(name) != run.get(name):
            one, other = (f"{t.dtype} {list(t.shape)}" if t else "missing" for t in (own.get(name), run.get(name)))
            return f"{rule}: {name}: {one}: the run's is {other}"
    return rule


def _set_run_constants(model: AdaptedModel, wanted: str, sent: Path | None) -> None:
    """Give the model the run's constants: rebuilt here, or as they were sent."""
    if constants_digest(model.constants) == wanted:
        return
    if sent is None:
        raise MismatchError("constants", "constants: this site builds others than the run's: it must be sent them")
    values = load_constants(sent.read_bytes())
    if constants_digest(values) != wanted:
        raise MismatchError("constants", "constants: what was sent is not what the run has")
    set_constants(model, values)
