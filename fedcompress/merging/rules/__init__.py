"""Elementwise merge rules are here, one file for each rule that a user can name."""
