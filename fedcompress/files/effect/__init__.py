"""Finds what an adapter does to its model: which tensors make a change together, in what form, and with what error."""
