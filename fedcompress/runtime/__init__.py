"""Starts, watches and stops processes on one machine."""
