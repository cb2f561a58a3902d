"""Rows of a data source become examples here, and stay tokenized."""
