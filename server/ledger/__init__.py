"""What the coordinator must not lose: versions, messages, decisions; and how it is read back."""
