"""The whole system on loopback, from one command."""
