"""Expert Merging: coefficients of adapters, learned from a few unlabelled batches; needs torch.

Zhang et al. 2025 (arXiv:2509.25712), with these differences:

- adapters stay adapters: a module's output gets ``sum_i c_im * scaling * B_i A_i x``. The released code rebuilds
  all weights in each forward pass; here base weights are only read;
- coefficients are free, where the released code has a sigmoid of them: one site then has exactly 1; a trimmed
  update may want more than 1; and at 1 / n the slope of a sigmoid shrinks with n;
- hidden states are compared by squared error over the teacher's mean square, so that no layer wins by its
  scale; logits by the Kullback-Leibler divergence, whose gradient is that of the paper's cross-entropy, but
  which is 0 where models agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.data_driven.factored import Factored, check_matrix, check_number, stacked
from fedcompress.merging.data_driven.probe import first, hooked, module_at, resting, run, tokens
from fedcompress.merging.engine import normalized
from fedcompress.types import Array, to_arrays

Adapter = Mapping[str, tuple[Any, Any]]  # by module: A (rank, columns) and B (rows, rank)


@dataclass(frozen=True, kw_only=True)
class Expert:
    """How coefficients are learned.

    Args:
        steps: each with one batch of every site.
        lr: of AdamW at first, falling to 0 in a line; without weight decay, which would pull towards 0 and
            not towards the start.
        pull: weight of ``mean|c - c_init|``, the paper's lambda.
        hidden: weight of the hidden states' distance; 0 leaves them out.
        temperature: of the softmax that logits go through.
        start: all coefficients at first; 0 is 1 / sites.
        seed: of the order of batches.
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
class Learned:
    """What ``expert`` found."""

    coefficients: dict[str, Floats]  # by module, (sites, chunks)
    losses: list[float]  # alignment loss of each step's batches, before the step


def expert(
    model: Any,
    adapters: Sequence[Adapter],
    batches: Sequence[Sequence[Any]],
    weights: Sequence[float],
    scaling: float = 1.0,
    chunks: Mapping[str, int] | None = None,
    hidden_modules: Sequence[str] | None = None,
    config: Expert | None = None,
) -> Learned:
    """Learn a coefficient for each site and module, so that the merged model acts on each site's batches as its own.

    Memory: the model once, all adapters, and the activations of one batch. A step is, for each site, a forward pass
    of its own model, and a forward and backward pass of the merged one.

    Args:
        model: the ``torch.nn.Module`` that all adapters belong to, without any; it is left as it was found.
        adapters: for each site ``A_i`` and ``B_i`` of the same modules; numpy arrays or tensors.
        batches: for each site some unlabelled batches, as ``collect_grams`` takes them.
        weights: of the sites' losses; normalised here.
        scaling: what the adapter multiplies ``B A`` with.
        chunks: coefficients of a module for each site, 1 if left out, each for equally many rows of B
            (``numpy.array_split``). See ``chunk_counts``.
        hidden_modules: whose outputs are hidden states, such as transformer blocks; the adapted modules if left out.
        config: how it is learned.

    Returns:
        Coefficients, float64, and losses.

    Raises:
        ConfigError: modules or shapes differ or are unknown, a site has no batch, numbers are NaN, or it diverges.
    """
    import torch

    config = config or Expert()
    shares, counts = _checked(model, adapters, batches, weights, scaling, chunks or {})
    mixture = _Mixture(model, adapters, scaling, hidden_modules)
    start = config.start or 1 / len(adapters)
    learned = {n: torch.full((len(adapters), k), start, device=mixture.device) for n, k in counts.items()}
    for values in learned.values():
        values.requires_grad_()
    with resting(model), hooked(mixture.attach()):
        alone = len(adapters) == 1 and start == 1  # the loss is 0, and AdamW would follow its rounding
        losses = [] if alone else _descend(mixture, batches, shares, learned, start, config)
    return Learned({n: v.detach().cpu().double().numpy() for n, v in learned.items()}, losses)


def _descend(
    mixture: _Mixture,
    batches: Sequence[Sequence[Any]],
    shares: Floats,
    learned: Mapping[str, Any],
    start: float,
    config: Expert,
) -> list[float]:
    """Change coefficients in place; the losses."""
    import torch

    optimizer = torch.optim.AdamW(learned.values(), lr=config.lr, weight_decay=0.0)
    size = sum(values.numel() for values in learned.values())
    draw, losses = np.random.default_rng(config.seed), []
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        optimizer.zero_grad()
        loss = 0.0
        for site, weight in enumerate(shares):
            batch = batches[site][int(draw.integers(len(batches[site])))]
            one = float(weight) * mixture.distance(site, batch, learned, config)
            one.backward()
            loss += float(one.detach())
        if not math.isfinite(loss):
            raise ConfigError("expert.lr", config.lr, f"must be less: the loss is {loss} at step {step}")
        losses.append(loss)
        (config.pull / size * sum((c - start).abs().sum() for c in learned.values())).backward()
        optimizer.step()
    return losses


def alignment(
    model: Any,
    adapters: Sequence[Adapter],
    batches: Sequence[Sequence[Any]],
    weights: Sequence[float],
    coefficients: Mapping[str, Floats],
    scaling: float = 1.0,
    hidden_modules: Sequence[str] | None = None,
    config: Expert | None = None,
) -> float:
    """The loss that ``expert`` minimises, without the pull, over all batches; 0 where every site finds its own model.

    Args and errors are those of ``expert``.
    """
    import torch

    counts = {name: values.shape[1] for name, values in coefficients.items()}
    shares, _ = _checked(model, adapters, batches, weights, scaling, counts)
    mixture = _Mixture(model, adapters, scaling, hidden_modules)
    given = {n: torch.tensor(v, dtype=torch.float32, device=mixture.device) for n, v in coefficients.items()}
    total = 0.0
    with torch.no_grad(), resting(model), hooked(mixture.attach()):
        for site, weight in enumerate(shares):
            for batch in batches[site]:
                loss = mixture.distance(site, batch, given, config or Expert())
                total += weight * float(loss) / len(batches[site])
    return total


def merged_adapters(
    adapters: Sequence[Adapter], coefficients: Mapping[str, Floats], scaling: float = 1.0
) -> dict[str, Factored]:
    """``sum_i c_im * scaling * B_i A_i`` of each module, stacked: rank n r, scaling included.

    Raises:
        ConfigError: coefficients of a module are missing, or not of every site.
    """
    out = {}
    for name in adapters[0] if adapters else {}:
        own = coefficients.get(name)
        if own is None or own.ndim != 2 or len(own) != len(adapters):
            rule = f"must be coefficients of {len(adapters)} sites"
            raise ConfigError(f"coefficients.{name}", "none" if own is None else list(own.shape), rule)
        parts = []
        for values, adapter in zip(own, adapters, strict=True):
            a, b = (_array(factor).astype(np.float64) for factor in adapter[name])
            parts.append(Factored(scaling * values[_places(b.shape[0], own.shape[1])][:, None] * b, a))
        out[name] = stacked(parts)
    return out


class _Mixture:
    """A model whose modules add adapters by coefficients, and that keeps what its modules put out."""

    def __init__(
        self, model: Any, adapters: Sequence[Adapter], scaling: float, hidden_modules: Sequence[str] | None
    ) -> None:
        import torch

        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._model, self._scaling = model, scaling
        self._factors = {
            name: [tuple(torch.as_tensor(_array(f), device=self.device) for f in own[name]) for own in adapters]
            for name in adapters[0]
        }
        self._places = {n: sites[0][1].shape[0] for n, sites in self._factors.items()}
        self._hidden = list(self._factors if hidden_modules is None else hidden_modules)
        self._coefficients: Mapping[str, Any] = {}
        self._seen: dict[str, Any] = {}

    def attach(self) -> list[Any]:
        """Handles of hooks; adapters come before what is kept."""
        adapted = {n: module_at(self._model, n, "adapters") for n in self._factors}
        hidden = {n: module_at(self._model, n, "hidden_modules") for n in self._hidden}
        handles = [m.register_forward_hook(self._add(n), with_kwargs=True) for n, m in adapted.items()]
        return handles + [m.register_forward_hook(self._keep(n)) for n, m in hidden.items()]

    def distance(self, site: int, batch: Any, coefficients: Mapping[str, Any], config: Expert) -> Any:
        """Alignment loss of a batch: of the model with these coefficients to that of the site alone."""
        import torch

        with torch.no_grad():
            alone = {n: torch.zeros_like(c) for n, c in coefficients.items()}
            for values in alone.values():
                values[site] = 1.0
            target, kept = self._outputs(batch, alone)
        found, states = self._outputs(batch, coefficients)
        soft = [torch.log_softmax(x.float() / config.temperature, -1) for x in (found, target)]
        loss = torch.nn.functional.kl_div(*soft, reduction="batchmean", log_target=True) * config.temperature**2
        if not config.hidden or not kept:
            return loss
        apart = [_relative(states[n], kept[n]) for n in kept]
        return loss + config.hidden * sum(apart) / len(apart)

    def _outputs(self, batch: Any, coefficients: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._coefficients, self._seen = coefficients, {}
        logits = first(run(self._model, batch))
        return tokens(logits, batch), {n: tokens(v, batch) for n, v in self._seen.items()}

    def _add(self, name: str) -> Callable[..., Any]:
        import torch

        def hook(module: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
            values = (*inputs, *named.values())[0].float()
            given = self._coefficients[name]
            places = torch.as_tensor(_places(self._places[name], given.shape[1]), device=given.device)
            for (a, b), own in zip(self._factors[name], given, strict=True):
                output = output + (self._scaling * own[places] * (values @ a.T @ b.T)).to(output.dtype)
            return output

        return hook

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            self._seen[name] = first(output)

        return hook


def _array(factor: Any) -> Array:
    """Of a numpy array or a tensor, which then gets no gradient."""
    return np.asarray(to_arrays({"factor": factor})["factor"], np.float32)


def _relative(found: Any, target: Any) -> Any:
    """Mean squared error over the mean square of the target."""
    power = target.float().square().mean().clamp_min(1e-12)
    return (found.float() - target.float()).square().mean() / power


def _places(rows: int, chunks: int) -> Any:
    """Which coefficient each row has."""
    return np.repeat(np.arange(chunks), [len(part) for part in np.array_split(np.arange(rows), chunks)])


def _checked(
    model: Any,
    adapters: Sequence[Adapter],
    batches: Sequence[Sequence[Any]],
    weights: Sequence[float],
    scaling: float,
    chunks: Mapping[str, int],
) -> tuple[Floats, dict[str, int]]:
    """Shares of the sites, and chunks of every module."""
    shares = normalized(weights, len(adapters))
    check_number("scaling", scaling, -1e6, 1e6)
    if not adapters[0]:
        raise ConfigError("adapters.0", "no module", "must have at least one")
    if len(batches) != len(adapters) or not all(len(own) for own in batches):
        raise ConfigError("batches", [len(own) for own in batches], f"must be some for each of {len(adapters)} sites")
    if unknown := sorted(set(chunks) - set(adapters[0])):
        raise ConfigError("chunks", unknown[:3], "must be of modules that have an adapter")
    counts = {}
    for site, adapter in enumerate(adapters):
        if list(adapter) != list(adapters[0]):
            apart = sorted(set(adapter) ^ set(adapters[0]))[:3]
            raise ConfigError(f"adapters.{site}", apart, "must have the modules of the first, in the same order")
        for name, pair in adapter.items():
            module_at(model, name, f"adapters.{site}")
            a, b = (_array(f) for f in pair)
            rows, columns = adapters[0][name][1].shape[0], adapters[0][name][0].shape[-1]
            check_matrix(f"adapters.{site}.{name}.A", a, (a.shape[0], columns))
            check_matrix(f"adapters.{site}.{name}.B", b, (rows, a.shape[0]))
            counts[name] = chunks.get(name, 1)
            if not 1 <= counts[name] <= rows:
                raise ConfigError(f"chunks.{name}", counts[name], f"must be from 1 to its {rows} rows")
    return shares, counts
