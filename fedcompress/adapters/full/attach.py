"""A model whose own weights are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcompress.adapters.attach import AdaptedModel, attach_adapter
from fedcompress.adapters.full.base_files import BaseWeights
from fedcompress.adapters.full.modes import Full, Layers, Subspace, TrainableSet, draw_layers, load_trainable_set
from fedcompress.chunks import TensorSlice
from fedcompress.errors import ConfigError
from fedcompress.numerics.seeded_bases import basis_of, shared_seed
from fedcompress.types import Array, Layout, TensorSpec

HEADS = ("classifier.", "score.")  # of a classifier, which begins at zero
BASIS, COEFFICIENTS = "/basis", "/coefficients"  # end names of what is not a weight itself


@dataclass(frozen=True)
class FullWeightsModel(AdaptedModel):
    """What is trained, and what else is set at the start of a round (``frozen``).

    Args:
        kind: of the run.
        whole: parameters whose difference from the base is the run's state, by their names in the model.
        base: where the base's values are.
    """

    kind: TrainableSet = Full()  # noqa: RUF009  frozen
    whole: Mapping[str, Any] | None = None
    base: BaseWeights | None = None

    @property
    def layout(self) -> Layout:
        """Of the state."""
        return weights_layout(self.whole or {})

    @property
    def one_by_one(self) -> bool:
        """Parameters are gathered and set one at a time."""
        return True

    def values(self, state: Mapping[str, Array], run: str, round_: int) -> RoundStart:
        """What parameters are set to at the start of a round."""
        return RoundStart(self, state, run, round_)


class RoundStart(Mapping[str, Array]):
    """Base plus state, coefficients of zero, and the bases of a round; each made when it is asked for."""

    def __init__(self, weights: FullWeightsModel, state: Mapping[str, Array], run: str, round_: int) -> None:
        self._weights, self._state = weights, state
        self._of = {t.name: t for t in weights.layout.tensors}
        self._seed = shared_seed(run, round_)

    def __getitem__(self, name: str) -> Array:
        weights, kind = self._weights, self._weights.kind
        if name.endswith(COEFFICIENTS):
            return np.zeros(tuple(shape_of(weights.parameters[name])), np.float32)
        if name.endswith(BASIS):
            assert isinstance(kind, Subspace)
            spec = self._of[name.removesuffix(BASIS)]
            return basis_of(kind.basis, spec.shape[1], kind.rank, self._seed, spec.name)
        return self.read(TensorSlice(spec=self._of[name]))

    def read(self, piece: TensorSlice) -> Array:
        """Some of a parameter: the base's values and the state, added in float32."""
        assert self._weights.base is not None
        read = getattr(self._state, "read", None)
        state = read(piece) if read is not None else _cut(self._state[piece.spec.name], piece)
        return self._weights.base.read(piece) + state

    def __iter__(self) -> Iterator[str]:
        return iter({**self._weights.frozen, **self._weights.parameters})

    def __len__(self) -> int:
        return len({**self._weights.frozen, **self._weights.parameters})


def _cut(value: Array, piece: TensorSlice) -> Array:
    return value[piece.start : piece.start + piece.spec.shape[0]] if piece.total else value


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Of the whole parameter, where ZeRO has partitioned it too."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def weights_layout(parameters: Mapping[str, Any]) -> Layout:
    """Layout of differences from the base: float32; vectors, as norms and biases, are coded as heads are."""
    specs = []
    for name, parameter in sorted(parameters.items()):
        shape = shape_of(parameter)
        is_head = len(shape) < 2 or name.startswith(HEADS)
        specs.append(TensorSpec(name=name, shape=shape, group="head" if is_head else "other"))
    return Layout(tuple(specs))


def attach_weights(
    module: Any,
    config: Mapping[str, Any],
    base: BaseWeights,
    freeze: tuple[str, ...] = (),
    *,
    seed: int = 0,
    round_: int = 1,
) -> FullWeightsModel:
    """Make a model ready; all its trained weights must be float32.

    Args:
        module: the base.
        config: with a kind, see ``load_trainable_set``.
        base: its files.
        freeze: parts of names; what has one is not trained.
        seed: of the run.
        round_: for which layers are drawn.

    Raises:
        ConfigError: nothing is trained, or the model has too few layers, or too small matrices.
    """
    kind = load_trainable_set(config)
    if isinstance(kind, Subspace):
        return _subspace(module, kind, base, freeze)
    named = {n: p for n, p in module.named_parameters() if not any(part in n for part in freeze)}
    trained: Mapping[str, Any]
    match kind:
        case Layers():
            whole, trained = _layers(module, named, kind, seed, round_)
        case _:
            parts = kind.target_modules
            whole = {n: p for n, p in named.items() if not parts or any(part in n for part in parts)}
            trained = whole
    if not trained:
        raise ConfigError("adapter", kind.name, f"trains nothing of this model with freeze={list(freeze)}")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    rest = {n: p for n, p in sorted(whole.items()) if n not in trained}
    ordered = dict(sorted(trained.items()))
    return FullWeightsModel(module, ordered, {}, (), rest, kind, dict(sorted(whole.items())), base)


def layers_of(module: Any) -> list[str]:
    """Names of a model's layers, in order: the entries of its outermost stacks."""
    import torch

    stacks = [n for n, m in module.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1]
    outer = [n for n in stacks if not any(n.startswith(f"{other}.") for other in stacks)]
    return [f"{stack}.{i}" for stack in outer for i in range(len(module.get_submodule(stack)))]


def _layers(
    module: Any, named: Mapping[str, Any], kind: Layers, seed: int, round_: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of all layers, and of those of a round."""
    layers = layers_of(module)
    always = {n: p for n, p in named.items() if any(part in n for part in kind.always)}
    chosen = [layers[i] for i in draw_layers(kind, len(layers), seed, round_)]

    def within(names: list[str]) -> dict[str, Any]:
        return {n: p for n, p in named.items() if any(n.startswith(f"{layer}.") for layer in names)} | always

    return within(layers), within(chosen)


def _subspace(module: Any, kind: Subspace, base: BaseWeights, freeze: tuple[str, ...]) -> FullWeightsModel:
    """Coefficients and basis are the factors of a LoRA whose second one is set and not trained."""
    targets = list(kind.target_modules) or "all-linear"
    lora = {"peft_type": "LORA", "r": kind.rank, "lora_alpha": kind.rank, "target_modules": targets}
    small = [
        f"{n}: {tuple(m.weight.shape)}"
        for n, m in module.named_modules()
        if _is_target(n, m, kind) and min(m.weight.shape) < kind.rank
    ]
    if small:
        raise ConfigError("adapter.subspace.rank", kind.rank, f"must be at most the smaller side of {small[0]}")
    made = attach_adapter(module, lora, (*freeze, "lora_A"))
    layers = {n: m for n, m in made.model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")}
    whole, frozen, parameters = {}, {}, {}
    for full_name, layer in sorted(layers.items()):
        name = f"{full_name.removeprefix('base_model.model.')}.weight"
        if not layer.lora_B["default"].weight.requires_grad:
            continue
        whole[name] = frozen[name] = layer.get_base_layer().weight
        frozen[name + BASIS] = layer.lora_A["default"].weight
        parameters[name + COEFFICIENTS] = layer.lora_B["default"].weight
    return FullWeightsModel(made.model, parameters, {}, (), frozen, kind, whole, base)


def _is_target(name: str, module: Any, kind: Subspace) -> bool:
    """Whether a linear layer may be meant; PEFT leaves the output layer out of all-linear."""
    import torch

    if not isinstance(module, torch.nn.Linear):
        return False
    if kind.target_modules:
        return any(name == part or name.endswith(f".{part}") for part in kind.target_modules)
    return not name.endswith(("lm_head", "classifier", "score"))
