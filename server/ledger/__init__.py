"""The ledger keeps what the coordinator must not lose: versions, messages and decisions; and it is read back here."""
