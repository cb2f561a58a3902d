"""Optimizers are compared on these tasks: letters from scratch, a tiny pretrained Llama, SmolLM2 on GSM8K."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Protocol

import numpy as np

from benchmarks.settings.base import data_folder
from benchmarks.settings.gsm8k import EVAL_ROWS, LENGTH, answer_loss, load_smollm2, questions
from benchmarks.settings.shakespeare import load_stories, read_vocabulary, tokenize


class Task(Protocol):
    """A task has a model, its data and a grid of learning rates; ``rank`` is a quarter of the model's width."""

    name: ClassVar[str]
    steps: ClassVar[int]
    rank: ClassVar[int]
    gap: ClassVar[int]
    grid: ClassVar[tuple[float, ...]]

    def model(self, seed: int) -> Any:
        """Return the model to train."""
        ...

    def batch(self, draw: Any) -> Any:
        """Draw the examples of a step from a ``torch.Generator``."""
        ...

    def loss(self, model: Any, batch: Any) -> Any:
        """Return the scalar loss of a batch."""
        ...

    def held_loss(self, model: Any) -> float:
        """Return the loss of text that is not trained on, in nats a token."""
        ...


def _windows(ids: Any, length: int, rows: int, draw: Any) -> Any:
    import torch

    starts = torch.randint(len(ids) - length - 1, (rows,), generator=draw).tolist()
    return torch.stack([ids[s : s + length + 1] for s in starts])


def _window_loss(model: Any, windows: Any) -> Any:
    import torch

    logits = model(input_ids=windows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


class Letters:
    """``Letters`` trains a Llama of 0.35M parameters from scratch, on the characters of Tiny Shakespeare."""

    name: ClassVar[str] = "letters"
    steps: ClassVar[int] = 400
    rank: ClassVar[int] = 24
    gap: ClassVar[int] = 50
    grid: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

    def __init__(self) -> None:
        import torch

        text = (data_folder("tinyshakespeare") / "input.txt").read_text()
        letters = sorted(set(text))
        ids = torch.tensor([letters.index(c) for c in text])
        self._vocabulary = len(letters)
        cut = len(ids) * 9 // 10
        self._train = ids[:cut]
        self._held = ids[cut : cut + 128 * 49].view(128, 49)

    def model(self, seed: int) -> Any:
        """Return a model with random weights."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        shape = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 4}
        return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=self._vocabulary))

    def batch(self, draw: Any) -> Any:
        """Draw sixteen windows of 48 letters."""
        return _windows(self._train, 48, 16, draw)

    def loss(self, model: Any, batch: Any) -> Any:
        """Return the nats a letter."""
        return _window_loss(model, batch)

    def held_loss(self, model: Any) -> float:
        """Return the loss of 128 windows of the text's last tenth."""
        return float(_window_loss(model, self._held))


class Stories:
    """``Stories`` fine-tunes all of the pretrained 260k-parameter Llama on Tiny Shakespeare."""

    name: ClassVar[str] = "stories260k"
    steps: ClassVar[int] = 300
    rank: ClassVar[int] = 16
    gap: ClassVar[int] = 50
    grid: ClassVar[tuple[float, ...]] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

    def __init__(self) -> None:
        import torch

        vocabulary = read_vocabulary(data_folder("stories260k") / "tok512.bin")
        text = (data_folder("tinyshakespeare") / "input.txt").read_text()
        ids = torch.tensor(tokenize(text, vocabulary))
        cut = len(ids) * 9 // 10
        self._train = ids[:cut]
        self._held = ids[cut : cut + 128 * 65].view(128, 65)

    def model(self, seed: int) -> Any:
        """Return the model with its pretrained weights."""
        return load_stories(data_folder("stories260k"))

    def batch(self, draw: Any) -> Any:
        """Draw eight windows of 64 tokens."""
        return _windows(self._train, 64, 8, draw)

    def loss(self, model: Any, batch: Any) -> Any:
        """Return the nats a token."""
        return _window_loss(model, batch)

    def held_loss(self, model: Any) -> float:
        """Return the loss of 128 windows of the text's last tenth."""
        return float(_window_loss(model, self._held))


class Questions:
    """``Questions`` fine-tunes all of SmolLM2-135M-Instruct, whose weights come in bfloat16, on GSM8K."""

    name: ClassVar[str] = "smollm2"
    steps: ClassVar[int] = 24
    rank: ClassVar[int] = 144
    gap: ClassVar[int] = 12
    grid: ClassVar[tuple[float, ...]] = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)

    def __init__(self) -> None:
        _, tokenizer = load_smollm2()
        self._train = questions(tokenizer, "train")
        test = questions(tokenizer, "test")
        picks = np.random.default_rng(0).permutation(len(test))[:EVAL_ROWS]
        self._held = [test[i] for i in picks if len(test[i][0]) < LENGTH - 8][:48]

    def model(self, seed: int) -> Any:
        """Return the pretrained weights in float32: small learning rates are lost in bfloat16 weights."""
        return load_smollm2()[0].float()

    def batch(self, draw: Any) -> Sequence[Any]:
        """Draw four questions."""
        import torch

        return [self._train[i] for i in torch.randint(len(self._train), (4,), generator=draw).tolist()]

    def loss(self, model: Any, batch: Any) -> Any:
        """Return the nats a token of the answers."""
        return answer_loss(model, batch, "mean")

    def held_loss(self, model: Any) -> float:
        """Return the loss of the answers to test questions, in nats a token."""
        held = self._held
        total = sum(float(answer_loss(model, held[at : at + 16], "sum")) for at in range(0, len(held), 16))
        return total / sum(min(len(a) + len(s), LENGTH) - len(a) for a, s in held)


@cache
def load_task(name: str) -> Task:
    """Load a task; each is loaded once."""
    task: Task = {"letters": Letters, "stories260k": Stories, "smollm2": Questions}[name]()
    return task
