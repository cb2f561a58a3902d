"""Local training runs in the ranks of a worker: ``rank`` attends it, ``trainer`` does a job with data, task and engine."""
