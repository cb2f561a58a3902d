"""Elementwise merge rules, one file for each."""
