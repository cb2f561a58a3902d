"""Quantizers: how the values that are sent are written."""
