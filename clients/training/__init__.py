"""Local training runs in the ranks of a worker: ``rank`` attends it, ``trainer`` does its jobs."""
