"""Makes a model ready whose own weights are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcompress.adapters.attach import AdaptedModel, attach_adapter
from fedcompress.adapters.full.base_files import BaseWeights
from fedcompress.adapters.full.modes import Full, Layers, Subspace, TrainableSet, draw_round_layers, load_trainable_set
from fedcompress.chunks import TensorSlice, read_slices
from fedcompress.errors import ConfigError
from fedcompress.numerics.seeded_bases import basis_of, shared_seed
from fedcompress.types import Array, Layout, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

HEADS = ("classifier.", "score.")  # beginnings of the names of a classifier's head, which begins at zero
BASIS = "/basis"  # ends the name of a basis of a weight's rows
COEFFICIENTS = "/coefficients"  # ends the name of a weight's coefficients in its basis


@dataclass(frozen=True)
class FullWeightsModel(AdaptedModel):
    """A model of which the base's own weights, or coefficients of their change, are trained.

    With a subspace, ``parameters`` has the coefficients, and ``frozen`` the weights and the bases: all are set at
    the start of a round.

    Args:
        trainable_set: which weights the run trains.
        whole: parameters whose difference from the base is the run's state, by their names in the model.
        base: the files with the base's values.
    """

    trainable_set: TrainableSet = Full()  # noqa: RUF009  frozen
    whole: Mapping[str, Tensor] | None = None
    base: BaseWeights | None = None

    @property
    def layout(self) -> Layout:
        """Return the layout of the run's state."""
        return weights_layout(self.whole or {})

    @property
    def one_by_one(self) -> bool:
        """Return True: all parameters together may not fit into the memory of one device."""
        return True

    def values(self, state: Mapping[str, Array], run: str, round_: int) -> RoundStart:
        """Return what parameters are set to at the start of a round.

        Args:
            state: the published state: differences from the base, float32 by name, in memory or in a file.
            run: name of the run.
            round_: number of the round; both decide the bases of a subspace.

        Returns:
            A mapping that computes each value when it is asked for.
        """
        return RoundStart(self, state, run, round_)


class RoundStart(Mapping[str, Array]):
    """Gives what parameters are set to at the start of a round; each value is made when it is asked for.

    Weights are the base plus the state, coefficients are zero, and bases are those of the round.
    """

    def __init__(self, weights: FullWeightsModel, state: Mapping[str, Array], run: str, round_: int) -> None:
        self._weights = weights
        self._state = state
        self._specs = weights.layout.by_name
        self._seed = shared_seed(run, round_)

    def __getitem__(self, name: str) -> Array:
        if name.endswith(COEFFICIENTS):
            return np.zeros(full_shape(self._weights.parameters[name]), np.float32)
        if name.endswith(BASIS):
            subspace = self._weights.trainable_set
            assert isinstance(subspace, Subspace)
            spec = self._specs[name.removesuffix(BASIS)]
            return basis_of(subspace.basis, spec.shape[1], subspace.rank, self._seed, spec.name)
        return self.read(TensorSlice(spec=self._specs[name]))

    def read(self, part: TensorSlice) -> Array:
        """Read a slice of a weight: the base's values plus those of the state, added in float32."""
        assert self._weights.base is not None
        (change,) = read_slices(self._state, [part]).values()
        return self._weights.base.read(part) + change

    def __iter__(self) -> Iterator[str]:
        return iter({**self._weights.frozen, **self._weights.parameters})

    def __len__(self) -> int:
        return len({**self._weights.frozen, **self._weights.parameters})


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of the whole parameter, even where ZeRO-3 has partitioned it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def weights_layout(parameters: Mapping[str, Tensor]) -> Layout:
    """Return the layout of differences from the base, in float32 and sorted by name.

    Heads and vectors, as norms and biases are, belong to the group ``head``: they are coded as heads are.
    """
    specs = []
    for name, parameter in sorted(parameters.items()):
        shape = full_shape(parameter)
        is_head = len(shape) < 2 or name.startswith(HEADS)
        specs.append(TensorSpec(name=name, shape=shape, group="head" if is_head else "other"))
    return Layout(tuple(specs))


def attach_weights(
    module: Module,
    config: Mapping[str, Any],
    base: BaseWeights,
    freeze: tuple[str, ...] = (),
    *,
    seed: int = 0,
    round_: int = 1,
) -> FullWeightsModel:
    """Make a model ready to train its own weights, which must be float32.

    Args:
        module: the base; ``requires_grad`` of its parameters is set in place.
        config: a run's config with a trainable set, see ``load_trainable_set``.
        base: the files with the base's values.
        freeze: parts of names; a parameter whose name has one of them is not trained.
        seed: of the run; with the round's number it decides which layers are drawn.
        round_: number of the round; only ``Layers`` differ from round to round.

    Returns:
        The model with what is trained and, if not all of it is trained in this round, the rest in ``frozen``.

    Raises:
        ConfigError: nothing is trained, or the model has too few layers, or too small matrices.
    """
    trainable_set = load_trainable_set(config)
    if isinstance(trainable_set, Subspace):
        return _attach_subspace(module, trainable_set, base, freeze)
    unfrozen = {n: p for n, p in module.named_parameters() if not _has_part(n, freeze)}
    trained: Mapping[str, Tensor]
    match trainable_set:
        case Layers():
            whole, trained = _select_layers(module, unfrozen, trainable_set, seed, round_)
        case _:
            parts = trainable_set.target_modules
            whole = {n: p for n, p in unfrozen.items() if not parts or _has_part(n, parts)}
            trained = whole
    if not trained:
        raise ConfigError("adapter", trainable_set.name, f"trains nothing of this model with freeze={list(freeze)}")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return FullWeightsModel(
        module,
        parameters=dict(sorted(trained.items())),
        constants={},
        frozen={n: p for n, p in sorted(whole.items()) if n not in trained},
        trainable_set=trainable_set,
        whole=dict(sorted(whole.items())),
        base=base,
    )


def _has_part(name: str, parts: Iterable[str]) -> bool:
    return any(part in name for part in parts)


def find_layers(module: Module) -> list[str]:
    """Find the names of a model's layers, in order: the entries of its outermost lists of modules."""
    import torch

    stacks = [n for n, m in module.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1]
    outermost = [n for n in stacks if not any(n.startswith(f"{other}.") for other in stacks)]
    return [f"{stack}.{i}" for stack in outermost for i in range(len(module.get_submodule(stack)))]


def _select_layers(
    module: Module, unfrozen: Mapping[str, Tensor], trainable_set: Layers, seed: int, round_: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Select the parameters of all layers, and those of the layers of a round; both with what is always trained."""
    layers = find_layers(module)
    always = {n: p for n, p in unfrozen.items() if _has_part(n, trainable_set.always)}
    drawn = [layers[i] for i in draw_round_layers(trainable_set, len(layers), seed, round_)]

    def select(names: list[str]) -> dict[str, Tensor]:
        prefixes = tuple(f"{layer}." for layer in names)
        return {n: p for n, p in unfrozen.items() if n.startswith(prefixes)} | always

    return select(layers), select(drawn)


def _attach_subspace(
    module: Module, subspace: Subspace, base: BaseWeights, freeze: tuple[str, ...]
) -> FullWeightsModel:
    """Attach a LoRA whose B has the coefficients, and whose A has the basis, which is set and not trained."""
    rank = subspace.rank
    for name, layer in module.named_modules():
        if _is_target(name, layer, subspace) and min(layer.weight.shape) < rank:
            rule = f"must be at most the smaller side of {name}: {tuple(layer.weight.shape)}"
            raise ConfigError("adapter.subspace.rank", rank, rule)
    targets = list(subspace.target_modules) or "all-linear"
    lora_config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    lora = attach_adapter(module, lora_config, (*freeze, "lora_A"))
    layers = {n: m for n, m in lora.model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")}
    whole = {}
    frozen = {}
    parameters = {}
    for full_name, layer in sorted(layers.items()):
        name = f"{full_name.removeprefix('base_model.model.')}.weight"
        if not layer.lora_B["default"].weight.requires_grad:
            continue
        whole[name] = frozen[name] = layer.get_base_layer().weight
        frozen[name + BASIS] = layer.lora_A["default"].weight
        parameters[name + COEFFICIENTS] = layer.lora_B["default"].weight
    return FullWeightsModel(
        lora.model,
        parameters=parameters,
        constants={},
        frozen=frozen,
        trainable_set=subspace,
        whole=whole,
        base=base,
    )


def _is_target(name: str, module: Module, subspace: Subspace) -> bool:
    """Return True if a module is a linear layer that may be meant; PEFT leaves the output layer out of all-linear."""
    import torch

    if not isinstance(module, torch.nn.Linear):
        return False
    if subspace.target_modules:
        return any(name == part or name.endswith(f".{part}") for part in subspace.target_modules)
    return not name.endswith(("lm_head", "classifier", "score"))
