"""Rows of a data source become examples, and stay tokenized."""
