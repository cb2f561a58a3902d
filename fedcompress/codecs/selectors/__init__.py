"""Selectors choose which entries of a tensor are sent."""
