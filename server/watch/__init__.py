"""A run can be watched by reading what its coordinator writes: terminal, web page, Prometheus, TensorBoard."""

from server.watch.view import Snapshot, take_snapshot
from server.watch.web import serve

__all__ = ["Snapshot", "serve", "take_snapshot"]
