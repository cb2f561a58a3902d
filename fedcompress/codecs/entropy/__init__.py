"""Entropy coders turn positions, symbols and signs into about as many bits as they carry information."""
