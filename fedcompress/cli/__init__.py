"""The command line has one file for each command or group of commands.

Docstrings of commands are their help texts. A command imports what it needs when it is called, so that ``--help`` is
fast.
"""
