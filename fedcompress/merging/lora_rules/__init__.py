"""Merge rules for the factors of LoRA modules, one file for each."""
