"""A task says how rows become tokens, batches, losses and figures: the site's side of a run's objective.

``base`` has the contract, ``classification`` and ``language`` the tasks, ``chat``, ``packing`` and ``padding`` what
they share.
"""

from clients.training.tasks.base import BatchSums, Example, Task
from clients.training.tasks.choose import task_for

__all__ = ["Example", "BatchSums", "Task", "task_for"]
