"""Expert Merging learns coefficients of adapters from a few unlabelled batches; this needs torch.

Zhang et al. 2025 (arXiv:2509.25712), with these differences:

- adapters stay adapters: a module's output gets ``sum_i c_im * scaling * B_i A_i x``. The released code rebuilds all
  weights in each forward pass; here base weights are only read;
- coefficients are free, where the released code has a sigmoid of them: one site then has exactly 1; a trimmed update
  may want more than 1; and at 1 / n the slope of a sigmoid shrinks with n;
- hidden states are compared by squared error over the teacher's mean square, so that no layer wins by its scale;
  logits are compared by the Kullback-Leibler divergence, whose gradient is that of the paper's cross-entropy, but
  which is 0 where models agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.data_driven.factored import Factored, check_matrix, check_number, stack_factors
from fedcompress.merging.data_driven.probe import (
    call_model,
    evaluation_mode,
    find_module,
    first_tensor,
    removing_hooks,
    token_vectors,
)
from fedcompress.merging.engine import normalize_weights
from fedcompress.types import Array, to_arrays

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.utils.hooks import RemovableHandle

Factor = Any  # one factor of an adapter: a numpy array or a torch tensor of any float dtype
Adapter = Mapping[str, tuple[Factor, Factor]]  # by module: A (rank, columns) and B (rows, rank)
_MIN_POWER = 1e-12  # least mean square that a squared error is divided by


@dataclass(frozen=True, kw_only=True)
class Expert:
    """Holds the settings of how coefficients are learned.

    Args:
        steps: number of steps, each with one batch of every site.
        lr: learning rate of AdamW at the first step, falling linearly to 0. There is no weight decay, which would pull
            towards 0 and not towards the start.
        pull: weight of ``mean|c - c_init|``, the paper's lambda.
        hidden: weight of the distance of hidden states; 0 leaves them out.
        temperature: temperature of the softmax that logits go through.
        start: value of all coefficients at first; 0 is 1 / sites.
        seed: seed of the order of batches.

    Raises:
        ConfigError: a setting is out of range.
    """

    name: ClassVar[str] = "expert"
    steps: int = 100
    lr: float = 0.03
    pull: float = 0.01
    hidden: float = 1.0
    temperature: float = 1.0
    start: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("expert.steps", self.steps, 0, 1_000_000)
        check_number("expert.lr", self.lr, 1e-9, 10)
        check_number("expert.pull", self.pull, 0, 1e6)
        check_number("expert.hidden", self.hidden, 0, 1e6)
        check_number("expert.temperature", self.temperature, 1e-3, 1e3)
        check_number("expert.start", self.start, -100, 100)


@dataclass(frozen=True)
class LearnedCoefficients:
    """Holds what ``expert`` has learned."""

    coefficients: dict[str, Floats]  # by module, (sites, chunks)
    losses: list[float]  # alignment loss of each step's batches, before the step


def expert(
    model: Module,
    adapters: Sequence[Adapter],
    batches: Sequence[Sequence[Any]],
    weights: Sequence[float],
    scaling: float = 1.0,
    chunks: Mapping[str, int] | None = None,
    hidden_modules: Sequence[str] | None = None,
    config: Expert | None = None,
) -> LearnedCoefficients:
    """Learn a coefficient for each site and module, so that the merged model acts on each site's batches as its own.

    Memory: the model once, all adapters, and the activations of one batch. A step is, for each site, a forward pass of
    its own model, and a forward and a backward pass of the merged one.

    Args:
        model: the model that all adapters belong to, without any adapter; it is left as it was found.
        adapters: for each site ``A_i`` and ``B_i`` of the same modules; numpy arrays or tensors.
        batches: for each site some unlabelled batches, as ``collect_grams`` takes them.
        weights: weights of the sites' losses; they are divided by their sum here.
        scaling: what the adapter multiplies ``B A`` with, alpha / r.
        chunks: number of coefficients of a module for each site, 1 if left out, each for equally many rows of B
            (``numpy.array_split``). See ``chunk_counts``.
        hidden_modules: names of modules whose outputs are hidden states, such as transformer blocks; the adapted
            modules if left out.
        config: how coefficients are learned; the defaults of ``Expert`` if left out.

    Returns:
        Coefficients, float64, and losses.

    Raises:
        ConfigError: modules or shapes differ or are unknown, a site has no batch, numbers are NaN, or it diverges.
    """
    import torch

    config = config or Expert()
    shares, counts = _check_inputs(model, adapters, batches, weights, scaling, chunks or {})
    mixture = _Mixture(model, adapters, scaling, hidden_modules)
    start = config.start or 1 / len(adapters)
    learned = {n: torch.full((len(adapters), k), start, device=mixture.device) for n, k in counts.items()}
    for values in learned.values():
        values.requires_grad_()
    with evaluation_mode(model), removing_hooks(mixture.attach()):
        # With one site that counts in full the loss is 0, and AdamW would follow its rounding.
        is_exact = len(adapters) == 1 and start == 1
        losses = [] if is_exact else _descend(mixture, batches, shares, learned, start, config)
    return LearnedCoefficients({n: v.detach().cpu().double().numpy() for n, v in learned.items()}, losses)


def _descend(
    mixture: _Mixture,
    batches: Sequence[Sequence[Any]],
    shares: Floats,
    learned: Mapping[str, Tensor],
    start: float,
    config: Expert,
) -> list[float]:
    """Change the coefficients in place, and return the loss of each step."""
    import torch

    optimizer = torch.optim.AdamW(learned.values(), lr=config.lr, weight_decay=0.0)
    size = sum(values.numel() for values in learned.values())
    generator = np.random.default_rng(config.seed)
    losses = []
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        optimizer.zero_grad()
        loss = 0.0
        for site, weight in enumerate(shares):
            batch = batches[site][int(generator.integers(len(batches[site])))]
            site_loss = float(weight) * mixture.distance(site, batch, learned, config)
            site_loss.backward()
            loss += float(site_loss.detach())
        if not math.isfinite(loss):
            raise ConfigError("expert.lr", config.lr, f"must be less: the loss is {loss} at step {step}")
        losses.append(loss)
        (config.pull / size * sum((c - start).abs().sum() for c in learned.values())).backward()
        optimizer.step()
    return losses


def alignment_loss(
    model: Module,
    adapters: Sequence[Adapter],
    batches: Sequence[Sequence[Any]],
    weights: Sequence[float],
    coefficients: Mapping[str, Floats],
    scaling: float = 1.0,
    hidden_modules: Sequence[str] | None = None,
    config: Expert | None = None,
) -> float:
    """Compute the loss that ``expert`` minimises, without the pull, over all batches.

    Args:
        model: as of ``expert``.
        adapters: as of ``expert``.
        batches: as of ``expert``.
        weights: as of ``expert``.
        coefficients: by module, shape (sites, chunks).
        scaling: as of ``expert``.
        hidden_modules: as of ``expert``.
        config: as of ``expert``; its weights of the parts of the loss are used.

    Returns:
        The loss; 0 where the merged model acts on every site's batches as the site's own.

    Raises:
        ConfigError: as of ``expert``.
    """
    import torch

    counts = {name: values.shape[1] for name, values in coefficients.items()}
    shares, _ = _check_inputs(model, adapters, batches, weights, scaling, counts)
    mixture = _Mixture(model, adapters, scaling, hidden_modules)
    tensors = {n: torch.tensor(v, dtype=torch.float32, device=mixture.device) for n, v in coefficients.items()}
    total = 0.0
    with torch.no_grad(), evaluation_mode(model), removing_hooks(mixture.attach()):
        for site, weight in enumerate(shares):
            for batch in batches[site]:
                loss = mixture.distance(site, batch, tensors, config or Expert())
                total += weight * float(loss) / len(batches[site])
    return total


def combine_adapters(
    adapters: Sequence[Adapter], coefficients: Mapping[str, Floats], scaling: float = 1.0
) -> dict[str, Factored]:
    """Merge adapters by coefficients: ``sum_i c_im * scaling * B_i A_i`` of each module, as stacked factors.

    Args:
        adapters: for each site ``A_i`` and ``B_i`` of the same modules; numpy arrays or tensors.
        coefficients: by module, shape (sites, chunks).
        scaling: what the adapter multiplies ``B A`` with, alpha / r.

    Returns:
        By module the change of the dense weight, with rank n r, scaling included.

    Raises:
        ConfigError: coefficients of a module are missing, or not of every site.
    """
    merged: dict[str, Factored] = {}
    for name in adapters[0] if adapters else {}:
        own = coefficients.get(name)
        if own is None or own.ndim != 2 or len(own) != len(adapters):
            rule = f"must be coefficients of {len(adapters)} sites"
            raise ConfigError(f"coefficients.{name}", "none" if own is None else list(own.shape), rule)
        parts = []
        for values, adapter in zip(own, adapters, strict=True):
            a, b = (_to_array(factor).astype(np.float64) for factor in adapter[name])
            by_row = values[_chunk_of_rows(b.shape[0], own.shape[1])]
            parts.append(Factored(scaling * by_row[:, None] * b, a))
        merged[name] = stack_factors(parts)
    return merged


class _Mixture:
    """A model whose modules add adapters by coefficients, and that keeps what its modules put out."""

    def __init__(
        self, model: Module, adapters: Sequence[Adapter], scaling: float, hidden_modules: Sequence[str] | None
    ) -> None:
        import torch

        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._model = model
        self._scaling = scaling
        self._factors = {
            name: [tuple(torch.as_tensor(_to_array(f), device=self.device) for f in own[name]) for own in adapters]
            for name in adapters[0]
        }
        self._rows = {name: factors[0][1].shape[0] for name, factors in self._factors.items()}
        self._hidden = list(self._factors if hidden_modules is None else hidden_modules)
        self._coefficients: Mapping[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}  # of the last forward pass, by name of a hidden module

    def attach(self) -> list[RemovableHandle]:
        """Attach the hooks and return their handles; a module's adapters are added before its output is kept."""
        adapted = {n: find_module(self._model, n, "adapters") for n in self._factors}
        hidden = {n: find_module(self._model, n, "hidden_modules") for n in self._hidden}
        handles = [m.register_forward_hook(self._add_adapters(n), with_kwargs=True) for n, m in adapted.items()]
        return handles + [m.register_forward_hook(self._keep_output(n)) for n, m in hidden.items()]

    def distance(self, site: int, batch: Any, coefficients: Mapping[str, Tensor], config: Expert) -> Tensor:
        """Compute the alignment loss of a batch: the distance of the mixture to the model of one site alone."""
        import torch

        with torch.no_grad():
            one_site = {n: torch.zeros_like(c) for n, c in coefficients.items()}
            for values in one_site.values():
                values[site] = 1.0
            target, target_states = self._run(batch, one_site)
        logits, states = self._run(batch, coefficients)
        log_softmax = [torch.log_softmax(x.float() / config.temperature, -1) for x in (logits, target)]
        divergence = torch.nn.functional.kl_div(*log_softmax, reduction="batchmean", log_target=True)
        loss = divergence * config.temperature**2
        if not config.hidden or not target_states:
            return loss
        errors = [_relative_error(states[n], target_states[n]) for n in target_states]
        return loss + config.hidden * sum(errors) / len(errors)

    def _run(self, batch: Any, coefficients: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits and the hidden states of a batch, without padding, for some coefficients."""
        self._coefficients = coefficients
        self._outputs = {}
        logits = first_tensor(call_model(self._model, batch))
        return token_vectors(logits, batch), {n: token_vectors(v, batch) for n, v in self._outputs.items()}

    def _add_adapters(self, name: str) -> Callable[..., Tensor]:
        import torch

        def hook(module: Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> Tensor:
            values = (*inputs, *named.values())[0].float()
            coefficients = self._coefficients[name]
            chunk = torch.as_tensor(_chunk_of_rows(self._rows[name], coefficients.shape[1]), device=coefficients.device)
            for (a, b), own in zip(self._factors[name], coefficients, strict=True):
                output = output + (self._scaling * own[chunk] * (values @ a.T @ b.T)).to(output.dtype)
            return output

        return hook

    def _keep_output(self, name: str) -> Callable[..., None]:
        def hook(module: Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            self._outputs[name] = first_tensor(output)

        return hook


def _to_array(factor: Factor) -> Array:
    """Convert a numpy array or a tensor to float32 on the host; a tensor then gets no gradient."""
    return np.asarray(to_arrays({"factor": factor})["factor"], np.float32)


def _relative_error(values: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error over the mean square of the target."""
    power = target.float().square().mean().clamp_min(_MIN_POWER)
    return (values.float() - target.float()).square().mean() / power


def _chunk_of_rows(rows: int, chunks: int) -> NDArray[np.int64]:
    """Return which chunk, so which coefficient, each row belongs to, shape (rows,)."""
    return np.repeat(np.arange(chunks), [len(part) for part in np.array_split(np.arange(rows), chunks)])


def _check_inputs(
    model: Module,
    adapters: Sequence[Adapter],
    batches: Sequence[Sequence[Any]],
    weights: Sequence[float],
    scaling: float,
    chunks: Mapping[str, int],
) -> tuple[Floats, dict[str, int]]:
    """Return the shares of the sites and the number of chunks of every module, or raise ``ConfigError``."""
    shares = normalize_weights(weights, len(adapters))
    check_number("scaling", scaling, -1e6, 1e6)
    if not adapters[0]:
        raise ConfigError("adapters.0", "no module", "must have at least one")
    if len(batches) != len(adapters) or not all(len(own) for own in batches):
        raise ConfigError("batches", [len(own) for own in batches], f"must be some for each of {len(adapters)} sites")
    if unknown := sorted(set(chunks) - set(adapters[0])):
        raise ConfigError("chunks", unknown[:3], "must be of modules that have an adapter")
    counts: dict[str, int] = {}
    for site, adapter in enumerate(adapters):
        if list(adapter) != list(adapters[0]):
            differing = sorted(set(adapter) ^ set(adapters[0]))[:3]
            raise ConfigError(f"adapters.{site}", differing, "must have the modules of the first, in the same order")
        for name, pair in adapter.items():
            find_module(model, name, f"adapters.{site}")
            a, b = (_to_array(f) for f in pair)
            rows = adapters[0][name][1].shape[0]
            columns = adapters[0][name][0].shape[-1]
            check_matrix(f"adapters.{site}.{name}.A", a, (a.shape[0], columns))
            check_matrix(f"adapters.{site}.{name}.B", b, (rows, a.shape[0]))
            counts[name] = chunks.get(name, 1)
            if not 1 <= counts[name] <= rows:
                raise ConfigError(f"chunks.{name}", counts[name], f"must be from 1 to its {rows} rows")
    return shares, counts
