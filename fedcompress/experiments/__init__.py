"""Grids of runs: every combination of some options, one result each."""

from fedcompress.experiments.grid import Grid, run_grid

__all__ = ["Grid", "run_grid"]
