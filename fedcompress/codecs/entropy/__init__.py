"""Entropy coding of positions, symbols and signs; byte-level readers and writers."""
