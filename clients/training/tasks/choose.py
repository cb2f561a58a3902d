"""The task is chosen by the type of the run's objective."""

from __future__ import annotations

from typing import Any

from clients.site import Data
from clients.training.tasks.base import Task
from clients.training.tasks.classification import ClassificationTask
from clients.training.tasks.language import CausalTask, Seq2SeqTask
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM


def task_for(objective: Objective, data: Data, tokenizer: Any, max_length: int) -> Task:
    """Build the task of an objective, for a site's rows.

    Args:
        objective: the run's.
        data: says what the site calls the fields of a row, and whether it packs.
        tokenizer: of the base model, from transformers.
        max_length: most tokens of an example; longer ones are cut.

    Returns:
        The task.
    """
    match objective:
        case Classification():
            return ClassificationTask(objective, data, tokenizer, max_length)
        case CausalLM():
            return CausalTask(data, tokenizer, max_length)
        case Seq2SeqLM():
            return Seq2SeqTask(data, tokenizer, max_length)
