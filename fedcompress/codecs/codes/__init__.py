"""Codes take whole tensors; each makes a clause of a codec spec by itself."""
