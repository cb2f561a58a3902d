"""What a rank does with rows: how they become tokens, batches, losses and figures."""

from clients.training.tasks.base import Example, Sums, Task
from clients.training.tasks.choose import task_for

__all__ = ["Example", "Sums", "Task", "task_for"]
