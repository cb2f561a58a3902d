"""What survives a kill on one machine: blobs, SQLite, locks that go with their process, and full disks that say so."""
