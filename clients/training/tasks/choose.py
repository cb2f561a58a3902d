"""The task of an objective."""

from __future__ import annotations

from typing import Any

from clients.site import Data
from clients.training.tasks.base import Task
from clients.training.tasks.classification import ClassificationTask
from clients.training.tasks.language import CausalTask, Seq2SeqTask
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM


def task_for(objective: Objective, data: Data, tokenizer: Any, max_length: int) -> Task:
    """The task of an objective, for a site's rows."""
    match objective:
        case Classification():
            return ClassificationTask(objective, data, tokenizer, max_length)
        case CausalLM():
            return CausalTask(data, tokenizer, max_length)
        case Seq2SeqLM():
            return Seq2SeqTask(data, tokenizer, max_length)
