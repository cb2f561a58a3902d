"""What lies where in a state directory; docs/operations.md says what each is for."""

from __future__ import annotations

BLOBS, EVENTS = "blobs", "events.jsonl"
COORDINATOR_LOCK = "coordinator.lock"  # held by the ServerApp
RUN_LOCK = "run.lock"  # held by `fedcompress run`
PROCESSES = "processes.json"  # what `fedcompress run` has started
SETTINGS = "settings.json"  # what it was started with
TEMPLATES = "templates"  # a copy of each run's initial adapter
FLOWER, SUPERLINK_DB, LOGS = "flower", "superlink.db", "logs"
WATCH_TOKEN = "watch.token"  # of the page that `fedcompress run` serves, if it made one up
RESTORED = "restored"  # when, in seconds since 1970, if it ever was
