"""Serves all processes of a site's machine: paths, logs, memory, and the token of its nodes."""
