"""Codes that take whole tensors: a clause of a codec spec by themselves."""
