"""Selectors: which entries of a tensor are sent."""
