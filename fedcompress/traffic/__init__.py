"""Counts the bytes that were sent: by message, and on the wire."""
