"""Keeps what a site must not lose between rounds."""
