"""Keeps what survives a kill on one machine: blobs, SQLite, locks that go with their process; tells of full disks."""
