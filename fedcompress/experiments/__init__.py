"""Experiments run every combination of some options, share data among sites, and measure what was trained."""

from fedcompress.experiments.grid import Grid, run_grid

__all__ = ["Grid", "run_grid"]
