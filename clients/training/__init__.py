"""Local training: model, data, engine, loop; runs in the ranks of a worker."""
