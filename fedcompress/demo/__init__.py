"""The demo runs the whole system on loopback, from one command."""
