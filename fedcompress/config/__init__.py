"""Settings of a run, parsed and checked once, where they enter the program."""
