"""One round: choose sites, send tasks, take in replies, merge, publish."""
