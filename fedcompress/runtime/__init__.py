"""Processes of one machine are found, started, watched and ended here, for the applications and the demo."""
