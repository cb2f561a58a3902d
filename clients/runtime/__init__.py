"""Processes, paths, logs and hardware of a site's machine."""
