"""Watching a run by reading what its coordinator writes: terminal, web page, Prometheus, TensorBoard."""

from server.watch.view import Snapshot, snapshot
from server.watch.web import serve

__all__ = ["Snapshot", "serve", "snapshot"]
