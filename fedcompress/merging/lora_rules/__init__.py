"""Merge rules for the two factors of LoRA modules are here, one file for each rule that a user can name."""
