"""The coordinator's ServerApp, as it is."""

from __future__ import annotations

from server.app import app as app
