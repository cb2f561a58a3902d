"""Quantizers write the values of the entries that are sent, in few bits."""
