"""Real fine-tuning tasks, small enough to federate in one process."""
